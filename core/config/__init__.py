"""What is configured: frozen, validated sections, and the trial that they make up.

Every field says its meaning and unit in its description; the reference page is made from these. A
wrong value is refused when the object is built, and every problem is named at once. Nothing here
imports torch, so that ``validate`` and ``status`` answer at once.
"""

from core.config.adapter import AdapterConfig, FisherConfig, TargetGroup
from core.config.data import DataConfig, FieldNames, PartRows, PreparationData, SourceConfig
from core.config.method import MethodConfig
from core.config.metrics import (
    AUTO,
    METRICS,
    STOP_METRIC,
    ConstraintMetric,
    LimitedMetric,
    MetricFacts,
    ObjectiveMetric,
    UtilityMetric,
    metric_facts,
)
from core.config.model import ModelConfig, Quantisation
from core.config.optimisation import (
    BatchConfig,
    BatchPlan,
    Dtype,
    EngineConfig,
    OptimizerConfig,
)
from core.config.preparation import PreparationConfig, TrainingConfig
from core.config.problems import describe_problems
from core.config.section import Positive, Section
from core.config.selection import (
    CheckpointEvery,
    ConstraintConfig,
    NoEffectConfig,
    PastTargetConfig,
    RetainGuardConfig,
    RowsPerProbe,
    SelectionConfig,
    StopRule,
)
from core.config.trial import TrialConfig, parse_trial
from core.config.written_numbers import with_numbers

__all__ = [
    "AUTO",
    "METRICS",
    "STOP_METRIC",
    "AdapterConfig",
    "BatchConfig",
    "BatchPlan",
    "CheckpointEvery",
    "ConstraintConfig",
    "ConstraintMetric",
    "DataConfig",
    "Dtype",
    "EngineConfig",
    "FieldNames",
    "FisherConfig",
    "LimitedMetric",
    "MethodConfig",
    "MetricFacts",
    "ModelConfig",
    "NoEffectConfig",
    "ObjectiveMetric",
    "OptimizerConfig",
    "PartRows",
    "PastTargetConfig",
    "Positive",
    "PreparationConfig",
    "PreparationData",
    "Quantisation",
    "RetainGuardConfig",
    "RowsPerProbe",
    "Section",
    "SelectionConfig",
    "SourceConfig",
    "StopRule",
    "TargetGroup",
    "TrainingConfig",
    "TrialConfig",
    "UtilityMetric",
    "describe_problems",
    "metric_facts",
    "parse_trial",
    "with_numbers",
]
