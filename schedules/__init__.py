"""Schedule rules per operator and tuned records."""

if __name__ == "schedules":
    raise ImportError("import tvm_tinytrain.schedules instead of schedules: two copies of a module differ")
