"""The plugin's metrics keep the laws."""

from advdiff_core.testing import Example, laws

EXAMPLES = {
    "metric:accuracy": [{}, {"batch": 7, "confidence": 0.9}],
    "metric:fd-lite": [Example(settings={"size": 32}, best={"fd_lite": 0.0})],
}

test_metrics_keep_the_laws = laws(["advdiff-metrics"], examples=EXAMPLES, witnesses=2)
