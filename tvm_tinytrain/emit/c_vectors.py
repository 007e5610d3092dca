"""Vectors of float32 in C: GCC's vector extension, so that one text serves NEON and AVX.

``tt_f4`` is a vector of 4 floats, ``tt_f4u`` the same in memory, where it may begin at any float.
"""

from __future__ import annotations

import re
from typing import Any

import tvm

from tvm_tinytrain.errors import KernelError

_DTYPE = re.compile(r"float32x(\d+)$")
_USED = re.compile(r"\btt_(?:f|splat|min|max|even|half|fman?)(\d+)u?\b")


def lanes_of_dtype(dtype: str) -> int:
    """Elements of a vector type of floats, 1 for every other type."""
    found = _DTYPE.match(dtype)
    return int(found.group(1)) if found else 1


def vector_type(lanes: int) -> str:
    """The C type of a vector in a register."""
    return f"tt_f{lanes}"


def vector_helpers(text: str) -> list[str]:
    """Definitions of the vector types and functions that the C text uses."""
    return [
        _helpers(n) + _products(n) + (_half(n) if f"tt_half{n}(" in text else "")
        for n in sorted({int(lanes) for lanes in _USED.findall(text)})
    ]


def vector_place(kernel: str, name: str, base: str, stride: int, lanes: int, *, store: bool) -> str:
    """A vector of ``lanes`` elements of the array ``name`` from the index ``base`` on."""
    start = f"{name} + {base}" if base != "0" else name
    if stride == 1:
        return f"(*({'' if store else 'const '}{vector_type(lanes)}u *)({start}))"
    if store:
        raise KernelError(
            "emit C",
            f"kernel {kernel}",
            f"a vector stored with stride {stride}",
            "1",
            "do not vectorise that axis",
        )
    if stride == 2:
        return f"tt_even{lanes}({start})"
    elements = ", ".join(f"{name}[{base} + {i * stride}]" for i in range(lanes))
    return f"(({vector_type(lanes)}){{{elements}}})"


def half_of(vector: str, lanes: int, *, upper: bool) -> str:
    """Half of a vector of ``lanes`` elements, as a vector."""
    return f"tt_half{lanes}({vector}, {int(upper)})"


def ramp_of(indices: Any) -> tuple[Any, int, int] | None:
    """(first index, stride, lanes) of a vector's place, None for the place of one element."""
    index = indices[0]
    if type(index).__name__ != "Ramp":
        return None
    return index.base, int(index.stride), int(index.lanes)


def is_constant(index: Any) -> bool:
    """Whether an index, of an element or of a vector, is a number."""
    ramp = ramp_of([index])
    return isinstance(index if ramp is None else ramp[0], tvm.tirx.IntImm)


def _helpers(n: int) -> str:
    half = ", ".join([*(str(2 * i) for i in range(n // 2)), *(str(n + 2 * i + 1) for i in range(n // 2))])
    return f"""typedef float tt_f{n} __attribute__((vector_size({4 * n})));
typedef float tt_f{n}u __attribute__((vector_size({4 * n}), aligned(4), may_alias));
typedef int32_t tt_i{n} __attribute__((vector_size({4 * n})));
static inline tt_f{n} tt_splat{n}(float x) {{
  return (tt_f{n}){{{", ".join(["x"] * n)}}};
}}
/* x[0], x[2], ...: the second vector begins one element early, so that nothing behind the last one is read */
static inline tt_f{n} tt_even{n}(const float *x) {{
  const tt_f{n} low = *(const tt_f{n}u *)x, high = *(const tt_f{n}u *)(x + {n - 1});
  return __builtin_shuffle(low, high, (tt_i{n}){{{half}}});
}}"""


def _half(n: int) -> str:
    return f"""
static inline tt_f{n // 2} tt_half{n}(tt_f{n} v, int upper) {{
  const union {{
    tt_f{n} whole;
    tt_f{n // 2} halves[2];
  }} parts = {{v}};
  return parts.halves[upper];
}}"""


def _products(n: int) -> str:
    plain = f"""static inline tt_f{n} tt_choose{n}(tt_i{n} first, tt_f{n} a, tt_f{n} b) {{
  return (tt_f{n})((first & (tt_i{n})a) | (~first & (tt_i{n})b));
}}
static inline tt_f{n} tt_min{n}(tt_f{n} a, tt_f{n} b) {{ return tt_choose{n}(a < b, a, b); }}
static inline tt_f{n} tt_max{n}(tt_f{n} a, tt_f{n} b) {{ return tt_choose{n}(a > b, a, b); }}
static inline tt_f{n} tt_fma{n}(tt_f{n} sum, tt_f{n} a, tt_f{n} b) {{ return sum + a * b; }}
static inline tt_f{n} tt_fman{n}(tt_f{n} sum, tt_f{n} a, float b) {{ return sum + a * tt_splat{n}(b); }}
"""
    if n != 4:
        return "\n" + plain.rstrip()
    # GCC 12 knows these operations on Helium's vectors of floats by name only
    functions = [
        ("tt_min4(tt_f4 a, tt_f4 b)", "vminnmq_f32((float32x4_t)a, (float32x4_t)b)"),
        ("tt_max4(tt_f4 a, tt_f4 b)", "vmaxnmq_f32((float32x4_t)a, (float32x4_t)b)"),
        (
            "tt_fma4(tt_f4 sum, tt_f4 a, tt_f4 b)",
            "vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b)",
        ),
        ("tt_fman4(tt_f4 sum, tt_f4 a, float b)", "vfmaq_n_f32((float32x4_t)sum, (float32x4_t)a, b)"),
    ]
    helium = "\n".join(f"static inline tt_f4 {head} {{ return (tt_f4){call}; }}" for head, call in functions)
    condition = "#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 2)"
    return f"\n{condition}\n#include <arm_mve.h>\n{helium}\n#else\n{plain}#endif"
