"""Laws of every rule, mixer and language model, and functions to hold yours to them.

    check_rule(rule)                    all laws, or `LawBroken` with the smallest failing example of each
    check_mixer(factory), check_model(factory)
    @parametrize_with_laws([...])       one pytest item for each component and law
    memkit.testing.strategies           problems for laws of your own
    memkit check my_rule.py             the same from the shell, in words

A component may be exempt from a law, by its registration and with a reason:
`@register("rule", "mine", exempt={"clearing gates": "it returns to its initial weights"})`. To keep the law in spite
of an exemption is a failure.

Needs the extra `testing` (hypothesis and pytest); `memkit` itself never imports this package.
"""

try:
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
except ImportError as error:
    raise ImportError(
        "memkit.testing needs hypothesis and pytest. Install them with: pip install -e '.[testing]'"
    ) from error

from memkit.testing.check import check_mixer, check_model, check_rule, parametrize_with_laws
from memkit.testing.law import Law, LawBroken
from memkit.testing.laws.of_mixers import MIXER_LAWS, MODEL_LAWS
from memkit.testing.laws.of_rules import RULE_LAWS
from memkit.testing.profiles import PROFILES, Profile
from memkit.testing.report import Report, Verdict
from memkit.testing.sequences import MixerProblem, ModelProblem, mixer_problems, model_problems
from memkit.testing.strategies import Engine, RuleProblem, rule_problems
from memkit.testing.tolerance import Discarded, Mismatch, same, same_trees

__all__ = [
    "MIXER_LAWS",
    "MODEL_LAWS",
    "PROFILES",
    "RULE_LAWS",
    "Discarded",
    "Engine",
    "Law",
    "LawBroken",
    "Mismatch",
    "MixerProblem",
    "ModelProblem",
    "Profile",
    "Report",
    "RuleProblem",
    "Verdict",
    "check_mixer",
    "check_model",
    "check_rule",
    "mixer_problems",
    "model_problems",
    "parametrize_with_laws",
    "rule_problems",
    "same",
    "same_trees",
]
