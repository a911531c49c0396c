"""The backends that expressions can name. The registry itself imports no cv2, onnxruntime or torch.

Names come from, in this order: Penstock, `register_backend`, installed packages (entry point group
`penstock.backends`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from typing import Any, TypeVar, overload

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..base import Backend
from ..errors import ConfigError, Problem
from ..suggestions import did_you_mean
from .expression import NAME
from .plugins import installed_plugins, loaded
from .type_names import type_name
from .user import adapt

BACKEND_ENTRY_POINTS = "penstock.backends"

BUILTINS: dict[str, str] = {
    "Identity": "penstock.backends.operators.compose:Identity",
    "Empty": "penstock.backends.operators.compose:Empty",
    "Sequential": "penstock.backends.operators.compose:Sequential",
    "S": "penstock.backends.operators.compose:Sequential",
    "SyncTensor": "penstock.backends.operators.compose:SyncTensor",
    "Torch": "penstock.backends.operators.compose:Torch",
    "Parallel": "penstock.backends.operators.control:Parallel",
    "Max": "penstock.backends.operators.control:Max",
    "HasKey": "penstock.backends.operators.control:HasKey",
    "NotHasKey": "penstock.backends.operators.control:NotHasKey",
    "Sleep": "penstock.backends.operators.control:Sleep",
    "Keep": "penstock.backends.operators.keys:Keep",
    "Remove": "penstock.backends.operators.keys:Remove",
    "del": "penstock.backends.operators.keys:Remove",
    "Del": "penstock.backends.operators.keys:Remove",
    "rm": "penstock.backends.operators.keys:Remove",
    "Add": "penstock.backends.operators.keys:Add",
    "AddInt": "penstock.backends.operators.keys:AddInt",
    "Copy": "penstock.backends.operators.keys:Copy",
    "cp": "penstock.backends.operators.keys:Copy",
    "Move": "penstock.backends.operators.keys:Move",
    "mv": "penstock.backends.operators.keys:Move",
    "Result2Key": "penstock.backends.operators.keys:Result2Key",
    "Range": "penstock.backends.operators.compat:Range",
    "Random": "penstock.backends.operators.compat:Random",
    "Result2Other": "penstock.backends.operators.compat:Result2Other",
    "KeyA2KeyB": "penstock.backends.operators.compat:KeyA2KeyB",
    "Jump": "penstock.backends.expressions.composite:Jump",
    "MapReduce": "penstock.backends.expressions.composite:MapReduce",
    "Ensemble": "penstock.backends.expressions.composite:Ensemble",
    "CopySplit": "penstock.backends.expressions.composite:CopySplit",
    "DecodeMat": "penstock.backends.image.decode:DecodeMat",
    "CvtColorMat": "penstock.backends.image.convert:CvtColorMat",
    "cvtColorMat": "penstock.backends.image.convert:CvtColorMat",
    "ResizeMat": "penstock.backends.image.resize:ResizeMat",
    "Mat2Tensor": "penstock.backends.image.convert:Mat2Tensor",
    "DynamicResizeMat": "penstock.backends.image.resize:DynamicResizeMat",
    "FixRatioResizeMat": "penstock.backends.image.resize:FixRatioResizeMat",
    "AlignMat": "penstock.backends.image.resize:AlignMat",
    "PillowResizeMat": "penstock.backends.image.resize:PillowResizeMat",
    "ResizePadMat": "penstock.backends.image.pad:ResizePadMat",
    "ResizeCenterPadMat": "penstock.backends.image.pad:ResizeCenterPadMat",
    "LetterBoxMat": "penstock.backends.image.pad:LetterBoxMat",
    "TopLeftResizeMat": "penstock.backends.image.pad:TopLeftResizeMat",
    "FixHResizePadMat": "penstock.backends.image.pad:FixHResizePadMat",
    "CropMat": "penstock.backends.image.crop:CropMat",
    "CenterCropMat": "penstock.backends.image.crop:CenterCropMat",
    "CropResizeMat": "penstock.backends.image.crop:CropResizeMat",
    "PerspectiveTransformMat": "penstock.backends.image.crop:PerspectiveTransformMat",
    "TextCropMat": "penstock.backends.image.crop:TextCropMat",
    "PadToMultipleMat": "penstock.backends.image.pad_to:PadToMultipleMat",
    "PadToWidestTensor": "penstock.backends.image.pad_to:PadToWidestTensor",
    "Tensor2Mat": "penstock.backends.image.convert:Tensor2Mat",
    "FloatMat": "penstock.backends.image.convert:FloatMat",
    "SaveMat": "penstock.backends.image.convert:SaveMat",
    "DecodeTensor": "penstock.backends.image.tensor.decode:DecodeTensor",
    "CvtColorTensor": "penstock.backends.image.tensor.convert:CvtColorTensor",
    "cvtColorTensor": "penstock.backends.image.tensor.convert:CvtColorTensor",
    "FloatTensor": "penstock.backends.image.tensor.convert:FloatTensor",
    "NCHWTensor": "penstock.backends.image.tensor.convert:NCHWTensor",
    "GpuTensor": "penstock.backends.image.tensor.convert:GpuTensor",
    "CpuTensor": "penstock.backends.image.tensor.convert:CpuTensor",
    "ResizeTensor": "penstock.backends.image.tensor.resize:ResizeTensor",
    "DynamicResizeTensor": "penstock.backends.image.tensor.resize:DynamicResizeTensor",
    "AlignTensor": "penstock.backends.image.tensor.resize:AlignTensor",
    "ResizePadTensor": "penstock.backends.image.tensor.resize:ResizePadTensor",
    "CropTensor": "penstock.backends.image.tensor.crop:CropTensor",
    "CenterCropTensor": "penstock.backends.image.tensor.crop:CenterCropTensor",
    "CropResizeTensor": "penstock.backends.image.tensor.crop:CropResizeTensor",
    "PerspectiveTransformTensor": (
        "penstock.backends.image.tensor.crop:PerspectiveTransformTensor"
    ),
    "CopyMakeBorderTensor": "penstock.backends.image.tensor.crop:CopyMakeBorderTensor",
    "WarpAffineTensor": "penstock.backends.image.tensor.crop:WarpAffineTensor",
    "SetTensorRequestSize": "penstock.backends.image.tensor.rows:SetTensorRequestSize",
    "CatTensor": "penstock.backends.image.tensor.rows:CatTensor",
    "SplitTensor": "penstock.backends.image.tensor.rows:SplitTensor",
    "ArgMaxTensor": "penstock.backends.image.tensor.rows:ArgMaxTensor",
    "SaveTensor": "penstock.backends.image.tensor.files:SaveTensor",
    "LoadTensor": "penstock.backends.image.tensor.files:LoadTensor",
    "SoftmaxArgMaxTensor": "penstock.backends.operators.classify:SoftmaxArgMaxTensor",
    "TopScoresTensor": "penstock.backends.operators.top_scores:TopScoresTensor",
    "ClassMapTensor": "penstock.backends.operators.top_scores:ClassMapTensor",
    "TorchServeHandler": "penstock.backends.torchserve.backend:TorchServeHandler",
    "TorchServeStreamingHandler": "penstock.backends.torchserve.backend:TorchServeStreamingHandler",
    "CTCDecodeTensor": "penstock.backends.operators.ctc:CTCDecodeTensor",
    "YoloTensor": "penstock.backends.operators.yolo:YoloTensor",
    "OnnxTensor": "penstock.backends.engines.onnx:OnnxTensor",
    "OpenvinoTensor": "penstock.backends.engines.openvino.backend:OpenvinoTensor",
    "ModelTensor": "penstock.backends.engines.model:ModelTensor",
    "TorchScriptTensor": "penstock.backends.engines.torch.backend:TorchScriptTensor",
    "TorchExportTensor": "penstock.backends.engines.torch.backend:TorchExportTensor",
    "PythonTensor": "penstock.backends.engines.torch.backend:PythonTensor",
    "TritonPython": "penstock.backends.triton_python.backend:TritonPython",
    "TritonPythonDecoupled": "penstock.backends.triton_python.decoupled:TritonPythonDecoupled",
    "TensorrtTensor": "penstock.backends.engines.tensorrt.backend:TensorrtTensor",
}
"""Name -> where its class is. The module is imported when one of its backends is first used."""

LOOP_BACKENDS = frozenset({"EventLoop", "Ring"})
"""torchpipe's backends for loops. Penstock has none: a pipeline loops as a whole."""

EXTRAS = {
    "openvino": ("openvino",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt|tensorrt_rtx|tensorrt_rtx_bindings", "torch"),
}
"""Extra -> the modules that it installs. Of modules separated by | one is enough."""

_registered: dict[str, type[Backend]] = {}
UserBackend = TypeVar("UserBackend", bound=Callable[..., Any])


@overload
def register_backend(name: str, backend: UserBackend) -> UserBackend: ...
@overload
def register_backend(name: str) -> Callable[[UserBackend], UserBackend]: ...
def register_backend(
    name: str, backend: UserBackend | None = None
) -> UserBackend | Callable[[UserBackend], UserBackend]:
    """Register a class or a function as `name` or `Python[name]`. Works as a decorator, too.

    A function gets `data` and returns `result`. A class is a `Backend`, or has `forward(batch)`.
    Registering the same name again replaces the backend for pipelines loaded from then on. Raises
    ValueError for the name of a built-in and for an invalid name, TypeError for an object that is
    neither a class nor a function.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a valid name for a backend: expected letters, digits, _ . or -, "
            "starting with a letter"
        )
    if name in BUILTINS or name in LOOP_BACKENDS or name == "Python":
        raise ValueError(
            f"{name} is one of Penstock's own backends: register yours under another name"
        )
    if backend is None:
        return lambda decorated: register_backend(name, decorated)
    _registered[name] = adapt(name, backend)
    return backend


def find_backend(name: str) -> type[Backend]:
    """Return the class of that name.

    Raises ConfigError, with the nearest known name, if there is no such backend.
    """
    if name in BUILTINS:
        return _imported(name)
    if name in _registered:
        return _registered[name]
    installed = installed_plugins(BACKEND_ENTRY_POINTS)
    if name in installed:
        return _from_entry_point(installed[name])
    if name in LOOP_BACKENDS:
        message = (
            f"{name} is not a backend of Penstock: write [pipeline] loop = true, and items with "
            "`restart` enter again"
        )
        raise ConfigError([Problem(message)])
    raise ConfigError(
        [Problem(f"there is no backend {name!r}{did_you_mean(name, backend_names())}")]
    )


def is_operator(name: str) -> bool:
    """Return whether the name is one of Penstock's operators for keys, control and classes."""
    return BUILTINS.get(name, "").startswith("penstock.backends.operators.")


def backend_registered_here(name: str) -> bool:
    """Return whether the name was registered in this process, so that no other process knows it."""
    return name in _registered


def backend_names() -> list[str]:
    """Return all names that an expression can use, sorted."""
    return sorted({*BUILTINS, *_registered, *installed_plugins(BACKEND_ENTRY_POINTS)})


def extra_installed(extra: str) -> bool:
    """Return whether the modules of `penstock-serve[extra]` are installed. Imports nothing."""
    return all(
        any(find_spec(module) is not None for module in either.split("|"))
        for either in EXTRAS[extra]
    )


@dataclass(frozen=True, slots=True)
class ParameterDescription:
    """One parameter of a backend."""

    name: str
    """The key as written in a file."""
    type: str
    required: bool
    default: Any
    description: str


@dataclass(frozen=True, slots=True)
class BackendDescription:
    """The answer of `penstock backends NAME`."""

    name: str
    doc: str
    parameters: tuple[ParameterDescription, ...] | None
    """None: the backend takes any key."""
    extra: str
    """The extra that it needs; "": none."""
    extra_installed: bool
    alias_of: str = ""
    """The backend that this is another name of; "": it is not an alias."""
    problem: str = ""
    """Why the backend of an installed package can't be loaded; "": it can."""


def describe(name: str) -> BackendDescription:
    """Describe a backend. Raises ConfigError as `find_backend` does."""
    cls = find_backend(name)
    parameters = None
    if cls.parameters is not None:
        parameters = tuple(
            _describe_field(key, field) for key, field in cls.parameters.model_fields.items()
        )
    doc = (cls.__doc__ or "").strip()
    alias_of = (
        cls.__name__
        if BUILTINS.get(name) == BUILTINS.get(cls.__name__, "") and name != cls.__name__
        else ""
    )
    return BackendDescription(
        name,
        doc,
        parameters,
        cls.extra,
        not cls.extra or extra_installed(cls.extra),
        alias_of,
    )


def describe_all() -> list[BackendDescription]:
    """Describe every name that an expression can use, even if some can't be loaded."""
    descriptions = []
    for name in backend_names():
        try:
            descriptions.append(describe(name))
        except ConfigError as error:
            descriptions.append(BackendDescription(name, "", None, "", True, problem=str(error)))
    return descriptions


def _describe_field(key: str, field: FieldInfo) -> ParameterDescription:
    required = field.is_required()
    default = None if required or field.default is PydanticUndefined else field.default
    return ParameterDescription(
        field.alias or key,
        type_name(field.annotation, field.metadata),
        required,
        default,
        field.description or "",
    )


@cache
def _imported(name: str) -> type[Backend]:
    module, _, attribute = BUILTINS[name].partition(":")
    cls: type[Backend] = getattr(import_module(module), attribute)
    return cls


@cache
def _from_entry_point(plugin: EntryPoint) -> type[Backend]:
    cls: type[Backend] = loaded(plugin, "backend", lambda found: adapt(plugin.name, found))
    return cls
