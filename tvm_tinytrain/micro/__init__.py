"""Host-driven runs on boards: projects, transports, sessions."""

from tvm_tinytrain.micro.project import GeneratedProject, generate_project, get_supported_boards
from tvm_tinytrain.micro.session import Session

__all__ = ["GeneratedProject", "Session", "generate_project", "get_supported_boards"]
