"""In the project's own tests a warning is an error, unless it comes from a package that is out of our hands."""

import warnings

import pytest

pytestmark = pytest.mark.selftest


def warn_from(module: str, category: type[Warning]) -> None:
    warnings.warn_explicit("as of old", category, f"{module}.py", 1, module=module)


@pytest.mark.parametrize("category", [UserWarning, DeprecationWarning, ResourceWarning])
@pytest.mark.parametrize("module", ["harness.cache", "suites.selftest.test_cache", "mmdetached"])
def test_a_warning_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category):
        warn_from(module, category)


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
@pytest.mark.parametrize("module", ["mmcv", "mmdet.models.builder", "mmengine.config.config"])
def test_the_old_ways_of_openmmlab_pass(module: str, category: type[Warning]) -> None:
    warn_from(module, category)


def test_other_warnings_of_openmmlab_are_errors() -> None:
    with pytest.raises(UserWarning):
        warn_from("mmdet.models.builder", UserWarning)


@pytest.mark.filterwarnings("ignore:as of old")
def test_a_filter_of_the_test_itself_wins() -> None:
    warn_from("harness.cache", UserWarning)
