"""What Penstock does with each field of a Triton model configuration (`config.pbtxt`).

`FIELDS` is the one table: the translation does what it says, `penstock check` prints it, and
`docs/reference/triton-config.md` is made from it. A field without a line is refused.

A path has the names of the fields, joined by dots, without the indices of lists; `*` is any key of
a map. A path with a key goes before one with `*`, and a path without lines of its own has those of
the message that contains it, if that is refused. Of several lines the first that fits holds; after
those of a parameter come those of `parameters.*`.
"""

from __future__ import annotations

from collections.abc import Mapping

from .treatments import (
    ENGINES,
    ENSEMBLE,
    ONNX,
    OPENVINO,
    PYTHON,
    TENSORRT,
    TORCH,
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

_PLACES = "it says where memory lies and is copied: answers are the same"
_GPU_WORK = "it says when a GPU does its work: answers are the same"
_TRITON_READS_IT_NOT = "Triton reads it for other backends only"
_PYTHON_READS_IT_NOT = "Triton's Python backend does not read it"
_DELAY = (
    "a batch waits for more only while another one runs on its device, and starts at once if none "
    "does: answers are the same"
)
_METRICS = "it says how metrics look: answers are the same"
_RATES = (
    "Triton reads it only under --rate-limit=execution_count, where it says when instances run: "
    "answers are the same"
)
_CONTROL = "the value that the model's input gets"

_GPU_ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator"
_CPU_ACCELERATOR = "optimization.execution_accelerators.cpu_execution_accelerator"
_ACCELERATED = (
    "TensorRT runs the model where it is installed and all shapes are known, otherwise ONNX "
    "Runtime on the CPU"
)
_TENSORRT_TUNING = (
    "trt_max_partition_iterations",
    "trt_min_subgraph_size",
    "trt_dla_core",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_engine_cache_prefix",
    "trt_dump_subgraphs",
    "trt_force_sequential_engine_build",
    "trt_context_memory_sharing_enable",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_force_timing_cache",
    "trt_detailed_build_log",
    "trt_build_heuristics_enable",
    "trt_sparsity_enable",
    "trt_builder_optimization_level",
    "trt_auxiliary_streams",
    "trt_tactic_sources",
    "trt_profile_opt_shapes",
    "trt_cuda_graph_enable",
    "trt_dump_ep_context_model",
    "trt_ep_context_file_path",
    "trt_ep_context_embed_mode",
)
_CUDA_TUNING = (
    "arena_extend_strategy",
    "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream",
    "enable_cuda_graph",
    "enable_skip_layer_norm_strict_mode",
    "fuse_conv_bias",
    "gpu_mem_limit",
    "prefer_nhwc",
    "sdpa_kernel",
    "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms",
    "tunable_op_tuning_enable",
    "use_ep_level_unified_stream",
    "use_tf32",
)
_ON_OPENVINO = "ONNX Runtime's own kernels run the model: answers differ by rounding alone"

FIELDS: Mapping[str, tuple[Line, ...]] = {
    # the model
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
        honoured("a name that clients see", PYTHON),
        refused(
            "packages of AOTInductor are not translated: write a TOML file with TorchExportTensor",
            values="torch_aoti",
        ),
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
    # tensors
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
        ignored(_PYTHON_READS_IT_NOT, PYTHON),
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
            ignored(_PYTHON_READS_IT_NOT, PYTHON),
            refused("pad the inputs, and remove batch_input"),
        ),
    ),
    "batch_output": (
        ignored(_PYTHON_READS_IT_NOT, PYTHON),
        refused("an output split by ragged inputs: pad the inputs, and remove batch_output"),
    ),
    **dict.fromkeys(
        ("batch_output.kind", "batch_output.target_name", "batch_output.source_input"),
        (
            ignored(_PYTHON_READS_IT_NOT, PYTHON),
            refused("pad the inputs, and remove batch_output"),
        ),
    ),
    # optimization
    "optimization": (ignored("it sets nothing"),),
    "optimization.graph": (ignored("it sets nothing"),),
    "optimization.graph.level": (
        honoured("ONNX Runtime's level: -1 basic, 0 all, 1 extended, 2 none", ONNX),
        ignored(_TRITON_READS_IT_NOT),
    ),
    "optimization.priority": (ignored(_GPU_WORK),),
    "optimization.cuda": (ignored("it sets nothing"),),
    "optimization.cuda.graphs": (
        honoured("CUDA graphs are captured at warm-up", TENSORRT),
        ignored(_TRITON_READS_IT_NOT),
    ),
    "optimization.cuda.busy_wait_events": (ignored(_GPU_WORK),),
    "optimization.cuda.graph_spec": (
        approximated("graphs are captured for the batch sizes 1, 2, 4 … max_batch_size", TENSORRT),
        ignored(_TRITON_READS_IT_NOT),
    ),
    **dict.fromkeys(
        (
            "optimization.cuda.graph_spec.batch_size",
            "optimization.cuda.graph_spec.input",
            "optimization.cuda.graph_spec.input.*.dim",
            "optimization.cuda.graph_spec.graph_lower_bound",
            "optimization.cuda.graph_spec.graph_lower_bound.batch_size",
            "optimization.cuda.graph_spec.graph_lower_bound.input",
            "optimization.cuda.graph_spec.graph_lower_bound.input.*.dim",
        ),
        (
            approximated(
                "graphs are captured for the batch sizes 1, 2, 4 … max_batch_size", TENSORRT
            ),
            ignored(_TRITON_READS_IT_NOT),
        ),
    ),
    "optimization.cuda.output_copy_stream": (ignored(_GPU_WORK),),
    "optimization.execution_accelerators": (ignored("it sets nothing"),),
    _GPU_ACCELERATOR: (
        approximated(_ACCELERATED, ONNX),
        ignored(_TRITON_READS_IT_NOT),
    ),
    f"{_GPU_ACCELERATOR}.name": (
        approximated(_ACCELERATED, ONNX, "tensorrt"),
        approximated("ONNX models run on the CPU: answers differ by rounding alone", ONNX, "cuda"),
        refused("Triton knows the accelerators tensorrt and cuda: remove it", ONNX),
        ignored(_TRITON_READS_IT_NOT),
    ),
    f"{_GPU_ACCELERATOR}.parameters": (ignored("it sets nothing"),),
    f"{_GPU_ACCELERATOR}.parameters.precision_mode": (
        approximated(
            "the precision with TensorRT; ONNX Runtime on the CPU takes the model's own",
            ONNX,
            ("FP32", "FP16", "BF16"),
        ),
        refused(
            "TensorRT would need calibration tables: quantize the model with Q/DQ nodes, and set "
            "FP32",
            ONNX,
        ),
        ignored(_TRITON_READS_IT_NOT),
    ),
    **{
        f"{_GPU_ACCELERATOR}.parameters.{key}": (
            honoured(words, ONNX),
            ignored(_TRITON_READS_IT_NOT),
        )
        for key, words in {
            "max_workspace_size_bytes": "the most memory that TensorRT takes",
            "trt_profile_min_shapes": "the smallest shapes that TensorRT builds for",
            "trt_profile_max_shapes": "the largest shapes that TensorRT builds for",
        }.items()
    },
    **dict.fromkeys(
        (
            f"{_GPU_ACCELERATOR}.parameters.{key}"
            for key in ("trt_dla_enable", "int8_use_native_calibration_table")
        ),
        (
            ignored("it is off", values=("0", "false")),
            refused("it would compute in another precision: remove it", ONNX),
            ignored(_TRITON_READS_IT_NOT),
        ),
    ),
    **dict.fromkeys(
        (
            f"{_GPU_ACCELERATOR}.parameters.{key}"
            for key in ("trt_extra_plugin_lib_paths", "int8_calibration_table_name")
        ),
        (
            refused("it changes what TensorRT computes: remove it", ONNX),
            ignored(_TRITON_READS_IT_NOT),
        ),
    ),
    f"{_GPU_ACCELERATOR}.parameters.trt_layer_norm_fp32_fallback": (
        approximated("TensorRT chooses the precision of each layer", ONNX),
        ignored(_TRITON_READS_IT_NOT),
    ),
    **{
        f"{_GPU_ACCELERATOR}.parameters.{key}": (
            ignored("it says how engines are built and kept: answers are the same", ONNX),
            ignored(_TRITON_READS_IT_NOT),
        )
        for key in _TENSORRT_TUNING
    },
    **{
        f"{_GPU_ACCELERATOR}.parameters.{key}": (
            ignored("it tunes ONNX Runtime on CUDA: here ONNX models run on the CPU", ONNX),
            ignored(_TRITON_READS_IT_NOT),
        )
        for key in _CUDA_TUNING
    },
    f"{_GPU_ACCELERATOR}.parameters.*": (
        refused("no accelerator has such a parameter: remove it, or correct it", ONNX),
        ignored(_TRITON_READS_IT_NOT),
    ),
    _CPU_ACCELERATOR: (
        approximated(_ON_OPENVINO, ONNX),
        ignored(_TRITON_READS_IT_NOT),
    ),
    f"{_CPU_ACCELERATOR}.name": (
        approximated(_ON_OPENVINO, ONNX, "openvino"),
        refused("Triton knows the accelerator openvino: remove it", ONNX),
        ignored(_TRITON_READS_IT_NOT),
    ),
    f"{_CPU_ACCELERATOR}.parameters": (ignored("it sets nothing"),),
    f"{_CPU_ACCELERATOR}.parameters.*": (ignored("Triton reads no parameters of it"),),
    "optimization.input_pinned_memory": (ignored("it sets nothing"),),
    "optimization.input_pinned_memory.enable": (ignored(_PLACES),),
    "optimization.output_pinned_memory": (ignored("it sets nothing"),),
    "optimization.output_pinned_memory.enable": (ignored(_PLACES),),
    "optimization.gather_kernel_buffer_threshold": (ignored(_PLACES),),
    "optimization.eager_batching": (
        ignored("it says when the rows of a batch are joined: answers are the same"),
    ),
    # batches of requests
    "dynamic_batching": (honoured("requests share batches"),),
    "dynamic_batching.preferred_batch_size": (
        approximated(
            "a batch takes what waits, up to max_batch_size, and waits for more only until "
            "max_queue_delay_microseconds: answers are the same"
        ),
    ),
    "dynamic_batching.max_queue_delay_microseconds": (approximated(_DELAY),),
    "dynamic_batching.preserve_ordering": (
        ignored(
            "each request has its own answer, and those of a gRPC stream always come in the order "
            "of its requests"
        ),
    ),
    "dynamic_batching.priority_levels": (honoured("how many priorities there are"),),
    "dynamic_batching.default_priority_level": (
        honoured("the priority of a request that has none"),
    ),
    "dynamic_batching.default_queue_policy": (honoured("the rules of the queue"),),
    "dynamic_batching.priority_queue_policy": (honoured("the rules of one priority's queue"),),
    **{
        f"dynamic_batching.{policy}.{field}": (honoured(words),)
        for policy in ("default_queue_policy", "priority_queue_policy.*")
        for field, words in {
            "timeout_action": "whether a late request is refused, or goes behind the others",
            "default_timeout_microseconds": "how long a request may wait",
            "max_queue_size": "how many requests may wait",
        }.items()
    },
    **{
        f"dynamic_batching.{policy}.allow_timeout_override": (
            approximated(
                "the timeout of a request always counts, for its answer too: it is refused when "
                "that has passed"
            ),
        )
        for policy in ("default_queue_policy", "priority_queue_policy.*")
    },
    # sequences
    "sequence_batching": (honoured("requests belong to sequences"),),
    "sequence_batching.direct": (honoured("a sequence keeps its slot of a batch"),),
    "sequence_batching.direct.max_queue_delay_microseconds": (approximated(_DELAY),),
    "sequence_batching.direct.minimum_slot_utilization": (
        approximated(
            "a batch starts when max_queue_delay_microseconds have passed, or all slots have a "
            "request: answers are the same"
        ),
    ),
    "sequence_batching.oldest": (honoured("batches of the sequences that began first"),),
    "sequence_batching.oldest.max_candidate_sequences": (
        honoured("how many sequences an instance has at a time"),
    ),
    "sequence_batching.oldest.preferred_batch_size": (
        approximated("a batch takes what waits: answers are the same"),
    ),
    "sequence_batching.oldest.max_queue_delay_microseconds": (approximated(_DELAY),),
    "sequence_batching.oldest.preserve_ordering": (
        ignored(
            "the steps of a sequence are always answered in their order, and each request has "
            "its own answer"
        ),
    ),
    "sequence_batching.max_sequence_idle_microseconds": (
        honoured("when a sequence without requests ends"),
    ),
    "sequence_batching.control_input": (honoured("an input that tells of sequences"),),
    "sequence_batching.control_input.name": (honoured("the model's input"),),
    "sequence_batching.control_input.control": (honoured("what the input tells"),),
    "sequence_batching.control_input.control.kind": (
        honoured("start, end, ready or the sequence's id"),
    ),
    "sequence_batching.control_input.control.int32_false_true": (honoured(_CONTROL),),
    "sequence_batching.control_input.control.fp32_false_true": (honoured(_CONTROL),),
    "sequence_batching.control_input.control.bool_false_true": (honoured(_CONTROL),),
    "sequence_batching.control_input.control.data_type": (honoured("the datatype of the id"),),
    "sequence_batching.state": (honoured("an output that is the next step's input"),),
    "sequence_batching.state.input_name": (honoured("the model's input"),),
    "sequence_batching.state.output_name": (honoured("the model's output"),),
    "sequence_batching.state.data_type": (honoured("its datatype"),),
    "sequence_batching.state.dims": (honoured("its shape, without the batch dimension"),),
    "sequence_batching.state.initial_state": (honoured("the state of a sequence that begins"),),
    "sequence_batching.state.initial_state.name": (ignored("logs have it, and nothing else"),),
    "sequence_batching.state.initial_state.data_type": (honoured("its datatype"),),
    "sequence_batching.state.initial_state.dims": (honoured("its shape"),),
    "sequence_batching.state.initial_state.zero_data": (honoured("zeros"),),
    "sequence_batching.state.initial_state.data_file": (
        honoured("the bytes of a file in the folder initial_state"),
    ),
    "sequence_batching.state.use_same_buffer_for_input_output": (ignored(_PLACES),),
    "sequence_batching.state.use_growable_memory": (ignored(_PLACES),),
    "sequence_batching.iterative_sequence": (
        honoured("false: nothing to do", values="false"),
        refused(
            "a step that schedules itself again: write a decoupled Python model in its place",
        ),
    ),
    # ensembles
    "ensemble_scheduling": (honoured("models that call each other"),),
    "ensemble_scheduling.step": (honoured("one call of a model"),),
    "ensemble_scheduling.step.model_name": (honoured("the model that is called"),),
    "ensemble_scheduling.step.model_version": (honoured("its version; -1: the newest"),),
    "ensemble_scheduling.step.input_map": (honoured("its inputs, from tensors of the ensemble"),),
    "ensemble_scheduling.step.output_map": (honoured("its outputs, as tensors of the ensemble"),),
    "ensemble_scheduling.step.model_namespace": (
        refused("Penstock has one name for a model: give models of several folders names apart"),
    ),
    "ensemble_scheduling.max_inflight_requests": (
        approximated(
            "the answers of a decoupled step wait for those who read them, in a bounded queue of "
            "Penstock's own size"
        ),
    ),
    # instances
    "instance_group": (honoured("instances of the model"),),
    "instance_group.name": (ignored("logs have it, and nothing else"),),
    "instance_group.kind": (
        approximated(
            "models of this backend run on the CPU: answers differ by rounding alone",
            (ONNX, OPENVINO),
            "KIND_GPU",
        ),
        refused(
            "the model would choose its devices itself: set KIND_CPU, or KIND_GPU with gpus",
            TORCH,
            "KIND_MODEL",
        ),
        honoured("the kind of device that instances run on"),
    ),
    "instance_group.count": (honoured("how many instances there are, on each device"),),
    "instance_group.rate_limiter": (ignored(_RATES),),
    "instance_group.rate_limiter.resources": (ignored(_RATES),),
    "instance_group.rate_limiter.resources.name": (ignored(_RATES),),
    "instance_group.rate_limiter.resources.global": (ignored(_RATES),),
    "instance_group.rate_limiter.resources.count": (ignored(_RATES),),
    "instance_group.rate_limiter.priority": (ignored(_RATES),),
    "instance_group.gpus": (
        approximated(
            "models of this backend run on the CPU: answers differ by rounding alone",
            (ONNX, OPENVINO),
        ),
        honoured("the GPUs that instances run on"),
    ),
    "instance_group.secondary_devices": (
        ignored(_TRITON_READS_IT_NOT, (ONNX, TORCH, PYTHON)),
        refused("DLA cores compute in another precision: remove secondary_devices"),
    ),
    **dict.fromkeys(
        ("instance_group.secondary_devices.kind", "instance_group.secondary_devices.device_id"),
        (
            ignored(_TRITON_READS_IT_NOT, (ONNX, TORCH, PYTHON)),
            refused("DLA cores compute in another precision: remove secondary_devices"),
        ),
    ),
    "instance_group.profile": (
        approximated(
            "each batch runs in the smallest optimization profile that holds it", TENSORRT
        ),
        refused("only TensorRT has optimization profiles: remove it"),
    ),
    "instance_group.passive": (
        refused("a passive instance answers nothing by itself: remove the group"),
    ),
    "instance_group.host_policy": (
        ignored(
            "an option of tritonserver says with it which processors an instance uses: answers are "
            "the same"
        ),
    ),
    # the rest
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
        ignored(_PYTHON_READS_IT_NOT, PYTHON),
        refused("operators from a library of your own: wrap the model in a Python model"),
    ),
    "model_transaction_policy": (honoured("how many answers a request has"),),
    "model_transaction_policy.decoupled": (
        honoured("a request may have any number of answers", (PYTHON, ENSEMBLE)),
        honoured("false: each request has one answer", values="false"),
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
    "response_cache.enable": (honoured("answers are kept, if the server has --cache-size"),),
    "model_metrics": (ignored(_METRICS),),
    "model_metrics.metric_control": (ignored(_METRICS),),
    "model_metrics.metric_control.metric_identifier": (ignored(_METRICS),),
    "model_metrics.metric_control.metric_identifier.family": (ignored(_METRICS),),
    "model_metrics.metric_control.histogram_options": (ignored(_METRICS),),
    "model_metrics.metric_control.histogram_options.buckets": (ignored(_METRICS),),
    # parameters
    "parameters": (ignored("it sets nothing"),),
    "parameters.PENSTOCK_EXECUTOR": (
        honoured("thread: the model runs in the server's process", PYTHON, "thread"),
        honoured("process: the model has a process of its own", PYTHON, "process"),
        refused("expected thread or process, of a Python model"),
    ),
    "parameters.penstock_decode": (
        refused("Penstock does not decode images for Triton's models: let a Python model do it"),
    ),
    "parameters.EXECUTION_ENV_PATH": (
        refused(
            "a packed environment would run the model: install its packages beside Penstock, "
            "and remove it",
            PYTHON,
        ),
        refused("only Python models have it: remove it"),
    ),
    "parameters.FORCE_CPU_ONLY_INPUT_TENSORS": (
        honoured("inputs are always on the CPU", PYTHON, "yes"),
        approximated("inputs are on the CPU, even so: copy them to the GPU", PYTHON, "no"),
        refused("expected yes or no", PYTHON),
        refused("only Python models have it: remove it"),
    ),
    **{
        f"parameters.{key}": (honoured(words, ONNX),)
        for key, words in {
            "intra_op_thread_count": "threads within an operator; 0: the processors divided "
            "among the instances",
            "inter_op_thread_count": "threads that run operators side by side",
            "execution_mode": "0: one operator after another; 1: side by side",
            "enable_mem_arena": "whether ONNX Runtime keeps freed memory",
            "enable_mem_pattern": "whether ONNX Runtime plans memory ahead",
            "memory.enable_memory_arena_shrinkage": "whether memory is given back after a run",
        }.items()
    },
    **{
        f"parameters.{key}": (
            ignored("it tunes ONNX Runtime on CUDA: here ONNX models run on the CPU", ONNX),
        )
        for key in (
            "cudnn_conv_algo_search",
            "gpu_mem_limit",
            "arena_extend_strategy",
            "do_copy_in_default_stream",
        )
    },
    "parameters.session.use_device_allocator_for_initializers": (ignored(_PLACES, ONNX),),
    **{
        f"parameters.{key}": (honoured(words, TORCH),)
        for key, words in {
            "DISABLE_OPTIMIZED_EXECUTION": "whether TorchScript optimizes",
            "INFERENCE_MODE": "torch.inference_mode or torch.no_grad",
            "DISABLE_CUDNN": "without cuDNN",
            "ENABLE_WEIGHT_SHARING": "whether instances of a device share the weights",
            "ENABLE_CACHE_CLEANING": "whether GPU memory is given back after each batch",
            "INTER_OP_THREAD_COUNT": "threads between operators",
            "INTRA_OP_THREAD_COUNT": "threads within an operator",
            "ENABLE_JIT_EXECUTOR": "TorchScript's profiling executor",
            "ENABLE_JIT_PROFILING": "TorchScript's profiling",
            "ENABLE_TENSOR_FUSER": "TorchScript's fuser",
        }.items()
    },
    "parameters.execution_context_allocation_strategy": (ignored(_PLACES, TENSORRT),),
    **{
        f"parameters.{key}": (honoured("threads of each instance", OPENVINO),)
        for key in ("INFERENCE_NUM_THREADS", "CPU_THREADS_NUM")
    },
    **{
        f"parameters.{key}": (
            honoured("YES: the model computes in bfloat16", OPENVINO, ("YES", "NO")),
            refused("expected YES or NO", OPENVINO),
        )
        for key in ("HINT_BF16", "ENFORCE_BF16")
    },
    **{
        f"parameters.{key}": (
            ignored("it says how work is spread over threads: answers are the same", OPENVINO),
        )
        for key in (
            "COMPILATION_NUM_THREADS",
            "NUM_STREAMS",
            "CPU_THROUGHPUT_STREAMS",
            "CPU_BIND_THREAD",
        )
    },
    **{
        f"parameters.{key}": (ignored("Penstock pads where the model needs it", OPENVINO),)
        for key in ("SKIP_OV_DYNAMIC_BATCHSIZE", "SKIP_DYNAMIC_BATCHSIZE", "ENABLE_BATCH_PADDING")
    },
    "parameters.RESHAPE_IO_LAYERS": (
        ignored("NO: nothing to do", OPENVINO, "NO"),
        refused("the model would get other shapes: convert it with those of dims", OPENVINO),
    ),
    "parameters.CPU_EXTENSION_PATH": (
        refused("kernels from a library of your own: wrap the model in a Python model", OPENVINO),
    ),
    "parameters.execute_delay_ms": (
        ignored("backends of Triton's own tests read it, onnxruntime does not", ONNX),
    ),
    "parameters.*": (
        honoured("a parameter of the model: args has it", PYTHON),
        ignored("an ensemble reads no parameters, in Triton either", ENSEMBLE),
        refused("Penstock knows no such parameter of this backend: remove it, or correct it"),
    ),
}
