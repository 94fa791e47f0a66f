"""Language models composed from memkit: importing this package registers every architecture."""

from architectures import bank, hybrid, lmm, mac, mag, mal, mamba2, tnt, transformer
from architectures.language_model import LanguageModel, ModelState

__all__ = ["LanguageModel", "ModelState", "bank", "hybrid", "lmm", "mac", "mag", "mal", "mamba2", "tnt", "transformer"]
