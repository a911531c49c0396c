"""Which backends there are, by name. Built-ins are imported when first used: the registry itself imports no cv2, onnxruntime or torch.

Names come from, in this order: Penstock, `register_backend`, installed packages (entry point group `penstock.backends`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any, TypeVar, overload

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ..base import Backend
from ..errors import ConfigError, Problem
from ..suggestions import did_you_mean
from .expression import NAME
from .type_names import type_name
from .user import adapt

GROUP = "penstock.backends"

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
    "CopySplit": "penstock.backends.expressions.composite:CopySplit",
    "DecodeMat": "penstock.backends.image.mat:DecodeMat",
    "CvtColorMat": "penstock.backends.image.mat:CvtColorMat",
    "cvtColorMat": "penstock.backends.image.mat:CvtColorMat",
    "ResizeMat": "penstock.backends.image.mat:ResizeMat",
    "Mat2Tensor": "penstock.backends.image.mat:Mat2Tensor",
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
    "CropResizeMat": "penstock.backends.image.crop:CropResizeMat",
    "PerspectiveTransformMat": "penstock.backends.image.crop:PerspectiveTransformMat",
    "Tensor2Mat": "penstock.backends.image.convert:Tensor2Mat",
    "FloatMat": "penstock.backends.image.convert:FloatMat",
    "SaveMat": "penstock.backends.image.convert:SaveMat",
    "DecodeTensor": "penstock.backends.image.tensor_decode:DecodeTensor",
    "CvtColorTensor": "penstock.backends.image.tensor_convert:CvtColorTensor",
    "cvtColorTensor": "penstock.backends.image.tensor_convert:CvtColorTensor",
    "FloatTensor": "penstock.backends.image.tensor_convert:FloatTensor",
    "NCHWTensor": "penstock.backends.image.tensor_convert:NCHWTensor",
    "GpuTensor": "penstock.backends.image.tensor_convert:GpuTensor",
    "CpuTensor": "penstock.backends.image.tensor_convert:CpuTensor",
    "ResizeTensor": "penstock.backends.image.tensor_resize:ResizeTensor",
    "DynamicResizeTensor": "penstock.backends.image.tensor_resize:DynamicResizeTensor",
    "ResizePadTensor": "penstock.backends.image.tensor_resize:ResizePadTensor",
    "CropTensor": "penstock.backends.image.tensor_crop:CropTensor",
    "CopyMakeBorderTensor": "penstock.backends.image.tensor_crop:CopyMakeBorderTensor",
    "WarpAffineTensor": "penstock.backends.image.tensor_crop:WarpAffineTensor",
    "SetTensorRequestSize": "penstock.backends.image.tensor_rows:SetTensorRequestSize",
    "CatTensor": "penstock.backends.image.tensor_rows:CatTensor",
    "SplitTensor": "penstock.backends.image.tensor_rows:SplitTensor",
    "ArgMaxTensor": "penstock.backends.image.tensor_rows:ArgMaxTensor",
    "SaveTensor": "penstock.backends.image.tensor_files:SaveTensor",
    "LoadTensor": "penstock.backends.image.tensor_files:LoadTensor",
    "SoftmaxArgMaxTensor": "penstock.backends.operators.classify:SoftmaxArgMaxTensor",
    "OnnxTensor": "penstock.backends.engines.onnx:OnnxTensor",
    "ModelTensor": "penstock.backends.engines.model:ModelTensor",
    "TorchScriptTensor": "penstock.backends.engines.torch.backend:TorchScriptTensor",
    "TorchExportTensor": "penstock.backends.engines.torch.backend:TorchExportTensor",
    "PythonTensor": "penstock.backends.engines.torch.backend:PythonTensor",
    "TensorrtTensor": "penstock.backends.engines.tensorrt.backend:TensorrtTensor",
}
"""Name -> where its class is. A module is imported when one of its backends is first used."""

LOOPS = frozenset({"EventLoop", "Ring"})
"""Names of torchpipe that are Penstock's, and no backends: a pipeline loops as a whole."""

EXTRAS = {
    "torch": ("torch",),
    "tensorrt": ("tensorrt|tensorrt_rtx|tensorrt_rtx_bindings", "torch"),
}
"""Extra -> the modules that it brings; of those with | between them any one will do."""

_registered: dict[str, type[Backend]] = {}
UserBackend = TypeVar("UserBackend", bound=Callable[..., Any])


@overload
def register_backend(name: str, backend: UserBackend) -> UserBackend: ...
@overload
def register_backend(name: str) -> Callable[[UserBackend], UserBackend]: ...
def register_backend(
    name: str, backend: UserBackend | None = None
) -> UserBackend | Callable[[UserBackend], UserBackend]:
    """Make a class or a function known to expressions, as `name` or `Python[name]`; also as a decorator.

    A function gets `data` and returns `result`; a class is a `Backend`, or has `forward(batch)`. Registering one's own name again
    replaces it for pipelines loaded from then on. Raises ValueError for a built-in's name and for what is no name, TypeError for
    what is neither class nor function.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name for a backend: expected letters, digits, _ . or -, with a letter first"
        )
    if name in BUILTINS or name in LOOPS or name == "Python":
        raise ValueError(f"{name} is a backend of Penstock's own: register yours by another name")
    if backend is None:
        return lambda found: register_backend(name, found)
    _registered[name] = adapt(name, backend)
    return backend


def find_backend(name: str) -> type[Backend]:
    """The class of a name. Raises ConfigError where there is none, with the nearest name that there is."""
    if name in BUILTINS:
        return _imported(name)
    if name in _registered:
        return _registered[name]
    installed = _installed()
    if name in installed:
        return _from_entry_point(installed[name])
    if name in LOOPS:
        raise ConfigError(
            [
                Problem(
                    f"{name} is no backend here: write [pipeline] loop = true, and items with `restart` enter again"
                )
            ]
        )
    raise ConfigError(
        [Problem(f"there is no backend {name!r}{did_you_mean(name, backend_names())}")]
    )


def registered_here(name: str) -> bool:
    """Whether a name is known by `register_backend` alone, which no other process has called."""
    return name in _registered


def backend_names() -> list[str]:
    """All names that an expression may use, sorted."""
    return sorted({*BUILTINS, *_registered, *_installed()})


def extra_installed(extra: str) -> bool:
    """Whether what `penstock-serve[extra]` brings is there. Imports nothing."""
    return all(
        any(find_spec(module) is not None for module in either.split("|"))
        for either in EXTRAS[extra]
    )


@dataclass(frozen=True, slots=True)
class ParameterDescription:
    name: str
    """As written in a file."""
    type: str
    required: bool
    default: Any
    description: str


@dataclass(frozen=True, slots=True)
class BackendDescription:
    """What `penstock backends NAME` prints."""

    name: str
    doc: str
    parameters: tuple[ParameterDescription, ...] | None
    """None: the backend takes any key."""
    extra: str
    """The extra that it needs; "" where it needs none."""
    extra_installed: bool
    alias_of: str = ""
    """The backend that this is another name of; "" where it is none."""
    problem: str = ""
    """Why an installed package's can't be loaded."""


def describe(name: str) -> BackendDescription:
    """What there is to know about a backend. Raises ConfigError as `find_backend` does."""
    cls = find_backend(name)
    parameters = None
    if cls.parameters is not None:
        parameters = tuple(
            _describe_field(key, found) for key, found in cls.parameters.model_fields.items()
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
    """Every name that an expression may use. One that can't be loaded hides none of the others."""
    found = []
    for name in backend_names():
        try:
            found.append(describe(name))
        except ConfigError as error:
            found.append(BackendDescription(name, "", None, "", True, problem=str(error)))
    return found


def _describe_field(key: str, found: FieldInfo) -> ParameterDescription:
    required = found.is_required()
    default = None if required or found.default is PydanticUndefined else found.default
    return ParameterDescription(
        found.alias or key,
        type_name(found.annotation, found.metadata),
        required,
        default,
        found.description or "",
    )


@cache
def _imported(name: str) -> type[Backend]:
    module, _, attribute = BUILTINS[name].partition(":")
    found: type[Backend] = getattr(import_module(module), attribute)
    return found


@cache
def _installed() -> dict[str, EntryPoint]:
    """Entry points of installed packages; a name of Penstock's own can't be taken."""
    return {found.name: found for found in entry_points(group=GROUP)}


@cache
def _from_entry_point(entry: EntryPoint) -> type[Backend]:
    package = entry.dist.name if entry.dist is not None else entry.value
    try:
        return adapt(entry.name, entry.load())
    except Exception as error:
        raise ConfigError(
            [
                Problem(
                    f"the backend {entry.name} of {package} can't be loaded: {type(error).__name__}: {error}"
                )
            ]
        ) from error
