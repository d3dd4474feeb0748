"""scikit-learn's own checks on every detector: all pass, except for those listed here with the reason.

A check that begins to pass must be removed from the list. `estimator_type` is None (see
`Detector.__sklearn_tags__`), so the checks of outlier detectors, which want `predict` right after `fit`, are
not among them.
"""

import inspect

import numpy as np
import pytest

from dice.detectors import LastLayer
from dice.detectors.registry import METHODS

checks = pytest.importorskip("sklearn.utils.estimator_checks", reason="scikit-learn is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

C, D = 5, 10
W, B = np.random.default_rng(0).standard_normal((C, D)).astype(np.float32), np.zeros(C, np.float32)

WIDTH = "the last layer has a fixed width, the check's features have another"
LABELS = "labels are classes from 0 to C - 1, the check's are others"
NAME = "the parameter `score` has the name that scikit-learn gives a method"

OF_WIDTH = dict.fromkeys(
    [
        "check_dict_unchanged",
        "check_dont_overwrite_parameters",
        "check_estimators_dtypes",
        "check_estimators_fit_returns_self",
        "check_estimators_nan_inf",
        "check_estimators_overwrite_params",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_fit2d_1feature",
        "check_fit2d_predict1d",
        "check_fit_check_is_fitted",
        "check_fit_idempotent",
        "check_fit_score_takes_y",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_n_features_in",
        "check_n_features_in_after_fitting",
        "check_pipeline_consistency",
        "check_positive_only_tag_during_fit",
        "check_readonly_memmap_input",
    ],
    WIDTH,
)
OF_LABELS = dict.fromkeys(
    [
        "check_estimators_fit_returns_self",
        "check_estimators_overwrite_params",
        "check_fit2d_1feature",
        "check_readonly_memmap_input",
    ],
    LABELS,
)
OF_NAME = dict.fromkeys(
    ["check_fit_score_takes_y", "check_n_features_in_after_fitting", "check_pipeline_consistency"], NAME
)


def failing(det, expected):
    """The names of the checks that fail, of which `expected` {name: reason} may; and of all that ran."""
    results = checks.check_estimator(det, on_fail=None, expected_failed_checks=expected)
    ran = [result for result in results if result["status"] != "skipped"]
    print(f"{det}: {sum(result['status'] == 'passed' for result in ran)} of {len(ran)} pass")
    unexpected = {result["check_name"]: result["exception"] for result in ran if result["status"] == "failed"}
    assert not unexpected
    return (
        {result["check_name"] for result in ran if result["status"] == "xfail"},
        {result["check_name"] for result in ran},
    )


def expect(det, expected):
    """Exactly the checks named in `expected` fail, as far as this scikit-learn has them."""
    failed, ran = failing(det, expected)
    assert failed == expected.keys() & ran


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if not row.needs_head])
def test_without_a_last_layer(name):
    row = METHODS[name]
    expect(row.detector(**row.parameters), OF_LABELS if name in ("tempscale", "openmax") else {})


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_head])
def test_with_a_last_layer(name):
    expect(METHODS[name].make(W, B, METHODS[name].parameters), OF_WIDTH)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_head])
def test_with_a_last_layer_as_wide_as_the_features(name):
    """The checks that fail even if the number of features may change."""
    row = METHODS[name]
    expect(any_width(row)(), OF_NAME if issubclass(row.detector, LastLayer) else {})


def any_width(row):
    """The class of a detector with a made-up last layer, as wide as the features that it is fitted on."""

    class AnyWidth(row.detector):
        _made = None

        def __init__(self):
            pass

        def fit(self, h, y=None):
            self._made = self._cache = None
            return super().fit(h, y)

        def partial_fit(self, h, y=None):
            if self._made is None:
                self._made = np.random.default_rng(0).standard_normal((C, np.shape(h)[1])).astype(np.float32)
            return super().partial_fit(h, y)

        W = property(lambda self: self._made)
        b = B

    parameters = inspect.signature(row.detector).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    for parameter, value in (defaults | dict(row.parameters)).items():
        setattr(AnyWidth, parameter, value)
    AnyWidth.__qualname__ = AnyWidth.__name__ = f"AnyWidth{row.name.replace('-', '').replace('+', '')}"
    return globals().setdefault(AnyWidth.__name__, AnyWidth)  # where pickle looks for it
