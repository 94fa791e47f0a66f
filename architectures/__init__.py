"""Language models composed from memkit: importing this package registers every architecture."""

from architectures import hybrid, lmm, mac, mag, mal, mamba2, transformer
from architectures.language_model import LanguageModel, ModelState

__all__ = ["LanguageModel", "ModelState", "hybrid", "lmm", "mac", "mag", "mal", "mamba2", "transformer"]
