"""The treatment of the fields of a model itself, its tensors and its warm-up."""

from __future__ import annotations

from collections.abc import Mapping

from .treatments import (
    ENGINES,
    ENSEMBLE,
    NOT_READ_BY_PYTHON,
    PYTHON,
    Line,
    approximated,
    honoured,
    ignored,
    refused,
)

_NO_SUCH_BACKEND = (
    refused(
        "Penstock has no DALI: let a Python model run the pipeline, or write its steps as "
        "operators on images",
        values="dali",
    ),
    refused(
        "Penstock runs no TensorFlow graphs: convert the model to ONNX (tf2onnx), and set the "
        "backend to onnxruntime",
        values=("tensorflow", "tensorflow_graphdef", "tensorflow_savedmodel"),
    ),
    refused(
        "Penstock has no FIL: convert the trees to ONNX, and set the backend to onnxruntime",
        values="fil",
    ),
    refused(
        "Penstock runs no engines for language models: keep their server, and let a Python "
        "model call it",
        values=("tensorrtllm", "vllm"),
    ),
    refused(
        "Penstock has no such backend: it runs onnxruntime, pytorch, tensorrt, openvino, python "
        "and ensembles; a Python model may stand in"
    ),
)
_METRICS = "it says how metrics look: answers are the same"

MODEL_FIELDS: Mapping[str, tuple[Line, ...]] = {
    "name": (honoured("the model's name: that of its folder, or empty"),),
    "platform": (
        honoured(
            "stands for the backend",
            values=(
                "onnxruntime_onnx",
                "pytorch_libtorch",
                "libtorch",
                "tensorrt_plan",
                "ensemble",
            ),
        ),
        honoured("the file is a package of torch.export or AOTInductor", values="torch_aoti"),
        honoured("a name that clients see", PYTHON),
        *_NO_SUCH_BACKEND,
    ),
    "backend": (
        honoured("which engine runs the model", values=(*ENGINES, PYTHON)),
        *_NO_SUCH_BACKEND,
    ),
    "runtime": (
        *(
            ignored(
                "it names Triton's own library for this backend, which needs no name",
                backend,
                f"libtriton_{backend}.so",
            )
            for backend in (*ENGINES, PYTHON)
        ),
        refused("it names another library than Triton's own for this backend: remove it"),
    ),
    "version_policy": (honoured("which versions are served"),),
    "version_policy.latest": (honoured("the newest versions"),),
    "version_policy.latest.num_versions": (honoured("how many of the newest versions"),),
    "version_policy.all": (honoured("all versions"),),
    "version_policy.specific": (honoured("the versions that are named"),),
    "version_policy.specific.versions": (honoured("the versions that are named"),),
    "max_batch_size": (
        honoured("the most rows of a batch; 0: the tensors have no batch dimension"),
    ),
    "default_model_filename": (honoured("the file in the version's folder"),),
    "cc_model_filenames": (
        refused(
            "files by the GPU's compute capability: name the file in default_model_filename",
        ),
    ),
    "input": (honoured("an input"),),
    "input.name": (honoured("its name, for clients and in the model"),),
    "input.data_type": (honoured("its datatype"),),
    "input.format": (
        approximated(
            "checked, and says how decoded images are laid out; like Triton, Penstock never "
            "transposes a client's tensor",
        ),
    ),
    "input.dims": (honoured("its shape, without the batch dimension"),),
    "input.reshape": (honoured("the shape that the model gets"),),
    "input.reshape.shape": (honoured("the shape that the model gets"),),
    "input.is_shape_tensor": (
        refused("its values would be shapes: export the engine without shape tensors"),
    ),
    "input.allow_ragged_batch": (
        honoured("execute gets each request's own tensors, of any shapes", PYTHON),
        ignored("an ensemble joins no requests, in Triton either", ENSEMBLE),
        refused(
            "rows of different sizes would be joined into one tensor: pad them, and set "
            "allow_ragged_batch to false"
        ),
    ),
    "input.optional": (honoured("requests may leave it out"),),
    "input.is_non_linear_format_io": (
        refused("the engine would read another layout: build it with linear inputs"),
    ),
    "output": (honoured("an output"),),
    "output.name": (honoured("its name, for clients and in the model"),),
    "output.data_type": (honoured("its datatype"),),
    "output.dims": (honoured("its shape, without the batch dimension"),),
    "output.reshape": (honoured("the shape that the model gives"),),
    "output.reshape.shape": (honoured("the shape that the model gives"),),
    "output.label_filename": (honoured("the labels of classification"),),
    "output.is_shape_tensor": (
        refused("its values would be shapes: export the engine without shape tensors"),
    ),
    "output.is_non_linear_format_io": (
        refused("the engine would write another layout: build it with linear outputs"),
    ),
    "batch_input": (
        ignored(NOT_READ_BY_PYTHON, PYTHON),
        refused("a tensor made from ragged inputs: pad the inputs, and remove batch_input"),
    ),
    **dict.fromkeys(
        (
            "batch_input.kind",
            "batch_input.target_name",
            "batch_input.data_type",
            "batch_input.source_input",
        ),
        (
            ignored(NOT_READ_BY_PYTHON, PYTHON),
            refused("pad the inputs, and remove batch_input"),
        ),
    ),
    "batch_output": (
        ignored(NOT_READ_BY_PYTHON, PYTHON),
        refused("an output split by ragged inputs: pad the inputs, and remove batch_output"),
    ),
    **dict.fromkeys(
        ("batch_output.kind", "batch_output.target_name", "batch_output.source_input"),
        (
            ignored(NOT_READ_BY_PYTHON, PYTHON),
            refused("pad the inputs, and remove batch_output"),
        ),
    ),
    "metric_tags": (ignored(_METRICS),),
    "model_warmup": (honoured("requests that run before the model is ready"),),
    "model_warmup.name": (honoured("its name, in errors and logs"),),
    "model_warmup.batch_size": (honoured("how many rows it has"),),
    "model_warmup.inputs": (honoured("its tensors"),),
    "model_warmup.inputs.*.data_type": (honoured("the datatype"),),
    "model_warmup.inputs.*.dims": (honoured("the shape, without the batch dimension"),),
    "model_warmup.inputs.*.zero_data": (honoured("zeros"),),
    "model_warmup.inputs.*.random_data": (honoured("random values"),),
    "model_warmup.inputs.*.input_data_file": (
        honoured("the bytes of a file in the folder warmup"),
    ),
    "model_warmup.count": (honoured("how often it runs"),),
    "model_operations": (ignored("it sets nothing"),),
    "model_operations.op_library_filename": (
        ignored(NOT_READ_BY_PYTHON, PYTHON),
        refused("operators from a library of your own: wrap the model in a Python model"),
    ),
    "model_transaction_policy": (honoured("how many answers a request has"),),
    "model_transaction_policy.decoupled": (
        honoured("false: each request has one answer", values="false"),
        honoured("a request may have any number of answers", ENSEMBLE),
        approximated(
            "a request may have any number of answers; `execute` gets one request at a time, also "
            "with dynamic_batching",
            PYTHON,
        ),
        refused("a model of this backend gives one answer to a request: remove it"),
    ),
    "model_repository_agents": (ignored("it sets nothing"),),
    "model_repository_agents.agents": (
        refused(
            "an agent may check or change the files of the model: do what it does before "
            "Penstock starts, and remove it"
        ),
    ),
    "response_cache": (honoured("whether answers are kept"),),
    "response_cache.enable": (honoured("answers are kept, in the memory of --cache-size"),),
    "model_metrics": (ignored(_METRICS),),
    "model_metrics.metric_control": (ignored(_METRICS),),
    "model_metrics.metric_control.metric_identifier": (ignored(_METRICS),),
    "model_metrics.metric_control.metric_identifier.family": (ignored(_METRICS),),
    "model_metrics.metric_control.histogram_options": (ignored(_METRICS),),
    "model_metrics.metric_control.histogram_options.buckets": (ignored(_METRICS),),
}
