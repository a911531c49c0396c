"""The treatment of the fields of `optimization`."""

from __future__ import annotations

from collections.abc import Mapping

from .treatments import (
    ON_CUDA,
    ONNX,
    PLACES,
    READ_FOR_OTHERS,
    TENSORRT,
    Line,
    approximated,
    honoured,
    ignored,
    refused,
)

_GPU_WORK = "it says when a GPU does its work: answers are the same"
_GPU_ACCELERATOR = "optimization.execution_accelerators.gpu_execution_accelerator"
_CPU_ACCELERATOR = "optimization.execution_accelerators.cpu_execution_accelerator"
_ACCELERATED = (
    "TensorRT runs the model where it is installed and all shapes are known, otherwise ONNX "
    "Runtime does, on the GPU if it can"
)
_TENSORRT_TUNING = (
    "trt_max_partition_iterations",
    "trt_min_subgraph_size",
    "trt_dla_core",
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
_CUDA_KERNELS = (
    "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_use_max_workspace",
    "enable_skip_layer_norm_strict_mode",
    "fuse_conv_bias",
    "prefer_nhwc",
    "sdpa_kernel",
    "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms",
    "tunable_op_tuning_enable",
)
_ON_OPENVINO = (
    "OpenVINO runs the model if it is installed, takes the model and is faster, otherwise ONNX "
    "Runtime does: answers differ by rounding alone"
)

OPTIMIZATION_FIELDS: Mapping[str, tuple[Line, ...]] = {
    "optimization": (ignored("it sets nothing"),),
    "optimization.graph": (ignored("it sets nothing"),),
    "optimization.graph.level": (
        honoured("ONNX Runtime's level: -1 basic, 0 all, 1 extended, 2 none", ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    "optimization.priority": (ignored(_GPU_WORK),),
    "optimization.cuda": (ignored("it sets nothing"),),
    "optimization.cuda.graphs": (
        honoured("CUDA graphs are captured at warm-up", TENSORRT),
        ignored(READ_FOR_OTHERS),
    ),
    "optimization.cuda.busy_wait_events": (ignored(_GPU_WORK),),
    "optimization.cuda.graph_spec": (
        approximated("graphs are captured for the batch sizes 1, 2, 4 … max_batch_size", TENSORRT),
        ignored(READ_FOR_OTHERS),
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
            ignored(READ_FOR_OTHERS),
        ),
    ),
    "optimization.cuda.output_copy_stream": (ignored(_GPU_WORK),),
    "optimization.execution_accelerators": (ignored("it sets nothing"),),
    _GPU_ACCELERATOR: (
        approximated(_ACCELERATED, ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    f"{_GPU_ACCELERATOR}.name": (
        approximated(_ACCELERATED, ONNX, "tensorrt"),
        approximated(ON_CUDA, ONNX, "cuda"),
        refused("Triton knows the accelerators tensorrt and cuda: remove it", ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    f"{_GPU_ACCELERATOR}.parameters": (ignored("it sets nothing"),),
    f"{_GPU_ACCELERATOR}.parameters.precision_mode": (
        approximated(
            "the precision of TensorRT, of ONNX Runtime on a GPU, and of OpenVINO; ONNX Runtime on "
            "the CPU takes the model's own",
            ONNX,
            ("FP32", "FP16", "BF16"),
        ),
        refused(
            "TensorRT would need calibration tables: quantize the model with Q/DQ nodes, and set "
            "FP32",
            ONNX,
        ),
        ignored(READ_FOR_OTHERS),
    ),
    **{
        f"{_GPU_ACCELERATOR}.parameters.{key}": (
            honoured(words, ONNX),
            ignored(READ_FOR_OTHERS),
        )
        for key, words in {
            "max_workspace_size_bytes": "the most memory that TensorRT takes",
            "trt_profile_min_shapes": "the smallest shapes that TensorRT builds for",
            "trt_profile_max_shapes": "the largest shapes that TensorRT builds for",
            "trt_engine_cache_path": "where engines are kept, with trt_engine_cache_enable",
            "gpu_mem_limit": "the most GPU memory that ONNX Runtime takes",
            "arena_extend_strategy": "how much GPU memory it takes when it needs more",
            "cudnn_conv_algo_search": "how cuDNN's algorithms are chosen",
        }.items()
    },
    f"{_GPU_ACCELERATOR}.parameters.trt_engine_cache_enable": (
        approximated(
            "engines are always kept; without trt_engine_cache_path in the folder of all engines",
            ONNX,
        ),
        ignored(READ_FOR_OTHERS),
    ),
    f"{_GPU_ACCELERATOR}.parameters.use_tf32": (
        honoured("0: matrix products and convolutions of FP32 are not rounded to TF32", ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    f"{_GPU_ACCELERATOR}.parameters.enable_cuda_graph": (
        honoured("0: no CUDA graphs", ONNX, ("0", "false")),
        approximated("graphs are captured for the batch sizes 1, 2, 4 … max_batch_size", ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    **{
        f"{_GPU_ACCELERATOR}.parameters.{key}": (
            ignored(PLACES, ONNX),
            ignored(READ_FOR_OTHERS),
        )
        for key in ("do_copy_in_default_stream", "use_ep_level_unified_stream")
    },
    **dict.fromkeys(
        (
            f"{_GPU_ACCELERATOR}.parameters.{key}"
            for key in ("trt_dla_enable", "int8_use_native_calibration_table")
        ),
        (
            ignored("it is off", values=("0", "false")),
            refused("it would compute in another precision: remove it", ONNX),
            ignored(READ_FOR_OTHERS),
        ),
    ),
    **dict.fromkeys(
        (
            f"{_GPU_ACCELERATOR}.parameters.{key}"
            for key in ("trt_extra_plugin_lib_paths", "int8_calibration_table_name")
        ),
        (
            refused("it changes what TensorRT computes: remove it", ONNX),
            ignored(READ_FOR_OTHERS),
        ),
    ),
    f"{_GPU_ACCELERATOR}.parameters.trt_layer_norm_fp32_fallback": (
        approximated("TensorRT chooses the precision of each layer", ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    **{
        f"{_GPU_ACCELERATOR}.parameters.{key}": (
            ignored("it says how engines are built and kept: answers are the same", ONNX),
            ignored(READ_FOR_OTHERS),
        )
        for key in _TENSORRT_TUNING
    },
    **{
        f"{_GPU_ACCELERATOR}.parameters.{key}": (
            approximated(
                "ONNX Runtime chooses its kernels as it does by default: answers differ by "
                "rounding alone",
                ONNX,
            ),
            ignored(READ_FOR_OTHERS),
        )
        for key in _CUDA_KERNELS
    },
    f"{_GPU_ACCELERATOR}.parameters.*": (
        refused("no accelerator has such a parameter: remove it, or correct it", ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    _CPU_ACCELERATOR: (
        approximated(_ON_OPENVINO, ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    f"{_CPU_ACCELERATOR}.name": (
        approximated(_ON_OPENVINO, ONNX, "openvino"),
        refused("Triton knows the accelerator openvino: remove it", ONNX),
        ignored(READ_FOR_OTHERS),
    ),
    f"{_CPU_ACCELERATOR}.parameters": (ignored("it sets nothing"),),
    f"{_CPU_ACCELERATOR}.parameters.*": (ignored("Triton reads no parameters of it"),),
    "optimization.input_pinned_memory": (ignored("it sets nothing"),),
    "optimization.input_pinned_memory.enable": (ignored(PLACES),),
    "optimization.output_pinned_memory": (ignored("it sets nothing"),),
    "optimization.output_pinned_memory.enable": (ignored(PLACES),),
    "optimization.gather_kernel_buffer_threshold": (ignored(PLACES),),
    "optimization.eager_batching": (
        ignored("it says when the rows of a batch are joined: answers are the same"),
    ),
}
