"""Takes an engine's name; gives its class, imported only when asked for. Adding an engine is one row here."""

from collections.abc import Mapping
from importlib import import_module

from harness.engines.base import Engine
from harness.errors import UsageError

# name -> module:class
ENGINES: dict[str, str] = {
    "torch": "harness.engines.torch:Torch",
    "onnxruntime": "harness.engines.onnxruntime:OnnxRuntime",
    "openvino": "harness.engines.openvino:OpenVino",
    "tensorrt": "harness.engines.tensorrt:TensorRt",
    "ixrt": "harness.engines.ixrt:Ixrt",
    "igie": "harness.engines.igie:Igie",
    "aotinductor": "harness.engines.aotinductor:AotInductor",
}


def get_engine(name: str, options: Mapping[str, str] | None = None) -> Engine:
    """The engine of that name, with its options set.

    Raises:
        UsageError: no such engine, or an option it does not know.
    """
    if name not in ENGINES:
        raise UsageError(f"no engine '{name}'; known: {', '.join(ENGINES)}", "choose one of them")
    module, _, attribute = ENGINES[name].partition(":")
    engine_class: type[Engine] = getattr(import_module(module), attribute)
    return engine_class(options)


def parse_options(values: list[str]) -> dict[str, dict[str, str]]:
    """`["onnxruntime.provider=cuda"]` -> `{"onnxruntime": {"provider": "cuda"}}`.

    Raises:
        UsageError: not of the form ENGINE.KEY=VALUE, an unknown engine, or a key or value that it does not take, also
            where it is not installed.
    """
    parsed: dict[str, dict[str, str]] = {}
    for value in values:
        target, equals, setting = value.partition("=")
        engine, dot, key = target.partition(".")
        if not (equals and dot and key and setting) or engine not in ENGINES:
            raise UsageError(
                f"engine option '{value}': wanted ENGINE.KEY=VALUE with ENGINE one of {', '.join(ENGINES)}",
                "for example --engine-option onnxruntime.provider=cuda; python -m harness list options",
            )
        parsed.setdefault(engine, {})[key] = setting
    for engine, options in parsed.items():
        get_engine(engine, options)
    return parsed
