"""The parameter file: what TVM writes is read; a damaged file says where."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tvm_tinytrain.errors import DTypeError, ImportModelError
from tvm_tinytrain.frontend.relay_text import read_params

DTYPES = ["float32", "float64", "float16", "int8", "uint8", "int32", "int64", "bool"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def saved(values: dict[str, np.ndarray]) -> bytes:
    return bytes(tvm.runtime.save_param_dict({n: tvm.runtime.tensor(a) for n, a in values.items()}))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=12), arrays, max_size=4))
def test_what_tvm_saves_is_read(values: dict[str, np.ndarray]) -> None:
    found = read_params(saved(values))
    assert found.keys() == values.keys()
    for name, array in values.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_file_is_an_error(data: st.DataObject) -> None:
    whole = saved({"conv.weight": np.ones((2, 3), np.float32), "b": np.zeros(3, np.int64)})
    with pytest.raises(ImportModelError, match=r"parameter file at byte \d+"):
        read_params(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_another_file_is_an_error() -> None:
    with pytest.raises(
        ImportModelError,
        match=r"at byte 0: found bytes 50 4b .*; allowed the magic number 0xF7E58D4F05049CB7",
    ):
        read_params(b"PK\x03\x04 a zip file, for example")


def patched(offset: int, layout: str, value: int) -> bytes:
    """A file with one float32 tensor of shape [3] named "w", one field changed."""
    data = bytearray(saved({"w": np.ones(3, np.float32)}))
    struct.pack_into(layout, data, offset, value)
    return bytes(data)


def test_fields_that_contradict_each_other() -> None:
    tensors, magic, ndim, lanes, extent, size = 33, 41, 65, 71, 73, 81
    for offset, layout, value, expected in [
        (tensors, "<Q", 2, "found 2 tensors for 1 names"),
        (tensors, "<Q", 1 << 60, "found number of tensors 1152921504606846976"),
        (magic, "<Q", 1, "allowed the magic number 0xDD5E40F096B4A13F"),
        (ndim, "<i", 99, "found 99 dimensions; allowed 0 to 32"),
        (extent, "<q", 4, r"found 12 bytes for float32 \(4,\); allowed 16 bytes"),
        (extent, "<q", -3, r"found 12 bytes for float32 \(-3,\)"),
        (size, "<q", 16, r"found 16 bytes for float32 \(3,\); allowed 12 bytes"),
    ]:
        with pytest.raises(ImportModelError, match=expected):
            read_params(patched(offset, layout, value))
    with pytest.raises(DTypeError, match="found type code 2, 32 bits, 4 lanes"):
        read_params(patched(lanes, "<H", 4))
