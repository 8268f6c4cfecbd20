"""How good it is, and how sure of that we may be: every number comes with its interval."""

from wazuka.evaluation.classification import Bin, Evaluation, evaluate
from wazuka.evaluation.episodes import episode_accuracy
from wazuka.evaluation.intervals import Estimate, wilson
from wazuka.evaluation.seeds import Comparison, Summary, mcnemar, paired_t, summarize

__all__ = [
    "Bin",
    "Comparison",
    "Estimate",
    "Evaluation",
    "Summary",
    "episode_accuracy",
    "evaluate",
    "mcnemar",
    "paired_t",
    "summarize",
    "wilson",
]
