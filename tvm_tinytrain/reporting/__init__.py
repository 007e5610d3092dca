"""Reports: one self-contained HTML page on a library, its memory, a session, and the accuracy of methods."""

from tvm_tinytrain.reporting.accuracy_file import load_accuracy
from tvm_tinytrain.reporting.page import Report
from tvm_tinytrain.reporting.session_record import SessionRecord

__all__ = ["Report", "SessionRecord", "load_accuracy"]
