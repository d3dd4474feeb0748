"""Safe readers of strangers' files: no code in them runs, and every count is bounded before it allocates."""

from dice.io.checkpoint import read_checkpoint, read_state_dict
from dice.io.cifar import read_cifar
from dice.io.files import fingerprint, write_atomic
from dice.io.mat import read_svhn
from dice.io.npy import NpyFile, read_npy
from dice.io.npz import read_npz

__all__ = [
    "NpyFile",
    "fingerprint",
    "read_checkpoint",
    "read_cifar",
    "read_npy",
    "read_npz",
    "read_state_dict",
    "read_svhn",
    "write_atomic",
]
