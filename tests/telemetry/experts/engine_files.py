"""Files as engines write them, made by hand: PyTorch's archives, safetensors, instance files."""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_KINDS = {
    "i4": "IntStorage",
    "i8": "LongStorage",
    "f4": "FloatStorage",
    "u1": "ByteStorage",
    "b1": "BoolStorage",
}
_GPU_FIELDS = {"gpu_node": [0, 0, 1, 1], "slots_per_gpu": [2, 2, 2, 2], "gpu_speed": [1.0, 1.0, 0.5, 2]}
Array = npt.NDArray[Any]


class _Pickle:
    """Writes the instructions that torch.save writes, protocol 2."""

    def __init__(self) -> None:
        self.out = io.BytesIO()
        self.out.write(b"\x80\x02")
        self.tensors: list[Array] = []

    def text(self, value: str) -> None:
        raw = value.encode()
        self.out.write(b"X" + struct.pack("<I", len(raw)) + raw)

    def add(self, value: Any) -> None:
        write = self.out.write
        if value is None or isinstance(value, bool):
            write({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            write(b"J" + struct.pack("<i", value))
        elif isinstance(value, float):
            write(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            self.text(value)
        elif isinstance(value, (list, tuple)):
            write(b"](" if isinstance(value, list) else b"(")
            for part in value:
                self.add(part)
            write(b"e" if isinstance(value, list) else b"t")
        elif isinstance(value, dict):
            write(b"}q\x00(")
            for key, part in value.items():
                self.add(key)
                self.add(part)
            write(b"u")
        else:
            self.tensor(value)

    def tensor(self, array: Array) -> None:
        write = self.out.write
        kind = _KINDS[array.dtype.str[1:]]
        write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self.text("storage")
        write(f"ctorch\n{kind}\n".encode())
        self.text(str(len(self.tensors)))
        self.text("cuda:0")
        self.add(array.size)
        write(b"tQK\x00")
        self.add(tuple(array.shape))
        self.add(tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides))
        write(b"\x89ccollections\nOrderedDict\n)RtR")
        self.tensors.append(np.ascontiguousarray(array))


def torch_bytes(value: Any) -> bytes:
    """Return what torch.save writes for a value; arrays stand for tensors."""
    pickle = _Pickle()
    pickle.add(value)
    return torch_archive(pickle.out.getvalue() + b".", pickle.tensors)


def torch_archive(program: bytes, tensors: list[Array] | None = None) -> bytes:
    """Return an archive around a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("dump/data.pkl", program)
        archive.writestr("dump/byteorder", b"little")
        for key, array in enumerate(tensors or []):
            archive.writestr(f"dump/data/{key}", array.tobytes())
        archive.writestr("dump/version", b"3\n")
    return out.getvalue()


def safetensors_bytes(arrays: dict[str, Array]) -> bytes:
    """Return a safetensors file."""
    names = {"i4": "I32", "i8": "I64", "f4": "F32"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in arrays.items():
        end = at + array.nbytes
        dtype = names[array.dtype.str[1:]]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def instance_parts() -> tuple[dict[str, Any], dict[str, Array]]:
    """Return a whole instance: 3 layers, 4 experts, 4 GPUs on 2 nodes, 8 slots."""
    rng = np.random.default_rng(1)
    document: dict[str, Any] = {
        "format": "moe-placement-instance/1",
        "name": "small",
        "layers": 3,
        "experts": 4,
        "top_k": 2,
        "gpus": 4,
        **_GPU_FIELDS,
        "us_per_token_expert": 2.0,
        "bytes_per_token_copy": 12288,
        "bw_intra_GBps": 450.0,
        "bw_inter_GBps": 50,
        "expert_bytes": 1000,
        "migration_bw_GBps": 25.0,
        "windows_until_next": 100,
        "migration_margin": 0.1,
        "arrays": "small.npz",
        "baselines": {"linear": {"J_us": 1.0}},
    }
    arrays: dict[str, Array] = {
        "load": rng.integers(0, 50, (3, 4)).astype(np.uint32),
        "trans": rng.integers(0, 50, (2, 4, 4)).astype(np.uint32),
        "token_sample": rng.integers(0, 4, (5, 3, 2)).astype(np.int16),
        "load_windows": rng.integers(0, 50, (6, 3, 4)).astype(np.uint32),
        "previous_p2l": np.tile(np.array([0, 1, 2, 3, 0, 1, 2, 3], dtype=np.int16), (3, 1)),
    }
    return document, arrays


def write_instance(folder: Path, document: dict[str, Any], arrays: dict[str, Array]) -> Path:
    """Write both files and return the JSON's path."""
    np.savez_compressed(folder / "small.npz", **arrays)  # type: ignore[arg-type]
    path = folder / "small.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
