"""Host-driven runs on boards: projects, transports, sessions."""

from tvm_tinytrain.micro.project import GeneratedProject, generate_project, get_supported_boards
from tvm_tinytrain.micro.session import Session
from tvm_tinytrain.micro.standalone import Standalone, StandaloneResult, read_result

__all__ = [
    "GeneratedProject",
    "Session",
    "Standalone",
    "StandaloneResult",
    "generate_project",
    "get_supported_boards",
    "read_result",
]
