"""AOTInductor says what it needs, and refuses a package that is damaged, not detgate's or cannot be compiled."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.engines import get_engine
from harness.engines.base import Source
from harness.errors import CheckpointError, EngineError, UsageError
from harness.model.checkpoint import Weights
from harness.pipeline import Cell, Pipeline, Settings

pytestmark = pytest.mark.selftest


@pytest.fixture(scope="module")
def source(session_cache: Path) -> Source:
    pipeline = Pipeline(Settings(cache_dir=session_cache, batch_size=1))
    return pipeline._source(Cell("pisa-mini", "fp32", "aotinductor"), pipeline.weights("pisa-mini", False), None)


def test_on_a_cpu_only_what_is_native_has_cells() -> None:
    assert get_engine("aotinductor").capabilities.precisions == ("fp32",)
    able = get_engine("aotinductor", {"device": "cuda"}).capabilities
    assert (able.precisions, able.device) == (("fp32", "fp16"), "accelerator")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match=r"aotinductor\.device: wanted cpu or cuda, found 'tpu'"):
        get_engine("aotinductor", {"device": "tpu"})


def test_without_a_compiler_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    engine = get_engine("aotinductor")
    assert engine.available() == "aotinductor builds with a C++ compiler, found no no-such-compiler"
    assert "set CXX" in engine.remedy


def test_without_torch_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.engines.aotinductor.import_fault", lambda _: "torch is not installed")
    assert get_engine("aotinductor").available() == "torch is not installed"


@pytest.mark.parametrize(("present", "reason"), [(True, None), (False, "finds no CUDA device")])
def test_cuda_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, present: bool, reason: str | None) -> None:
    monkeypatch.setenv("CXX", "true")
    monkeypatch.setattr("torch.cuda.is_available", lambda: present)
    engine = get_engine("aotinductor", {"device": "cuda"})
    found = engine.available()
    assert found is None if reason is None else reason in str(found)
    assert "CUDA build" in engine.remedy


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.write_bytes(b"no package"), lambda path: path.write_bytes(b""), lambda path: None],
    ids=["other content", "empty", "not there"],
)
def test_a_file_that_is_no_package_is_refused(source: Source, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "engine.pt2"
    spoil(path)
    with pytest.raises(EngineError, match=r"aotinductor \(torch .*\) cannot open .*engine\.pt2"):
        get_engine("aotinductor").open(source, path)


def test_what_cannot_be_compiled_names_the_model(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the compiler has no memory left\nmore lines")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fails)
    with pytest.raises(EngineError, match="did not compile pisa-mini: the compiler has no memory left"):
        get_engine("aotinductor").build(source, tmp_path / "engine.pt2")


def test_what_is_wrong_with_the_checkpoint_is_not_called_a_compiler_fault(source: Source, tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    broken = replace(source, weights=Weights(tmp_path / "broken.pth", "0" * 64))
    with pytest.raises(CheckpointError):
        get_engine("aotinductor").build(broken, tmp_path / "engine.pt2")


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 switched on in this process, as torch has it for cuDNN, and left as it was found."""
    import torch

    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [one.allow_tf32 for one in switches]
    for one in switches:
        one.allow_tf32 = True
    yield
    for one, value in zip(switches, before, strict=True):
        one.allow_tf32 = value


@pytest.mark.parametrize(("device", "allowed"), [("cpu", True), ("cuda", False)])
def test_on_cuda_float32_is_not_computed_in_tf32(
    device: str, allowed: bool, source: Source, tmp_path: Path, tf32: None
) -> None:
    import torch

    (tmp_path / "no.pt2").write_bytes(b"no package")
    with pytest.raises(EngineError):
        get_engine("aotinductor", {"device": device}).open(source, tmp_path / "no.pt2")
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is allowed
