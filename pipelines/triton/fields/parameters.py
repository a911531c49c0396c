"""The treatment of the parameters of each backend."""

from __future__ import annotations

from collections.abc import Mapping

from .treatments import (
    ENSEMBLE,
    ONNX,
    OPENVINO,
    PLACES,
    PYTHON,
    TENSORRT,
    TORCH,
    Line,
    honoured,
    ignored,
    refused,
)

PARAMETER_FIELDS: Mapping[str, tuple[Line, ...]] = {
    "parameters": (ignored("it sets nothing"),),
    "parameters.PENSTOCK_EXECUTOR": (
        honoured("thread: the model runs in the server's process", PYTHON, "thread"),
        honoured("process: the model has a process of its own", PYTHON, "process"),
        refused("expected thread or process, of a Python model"),
    ),
    "parameters.penstock_decode": (
        honoured("clients may send encoded images for its inputs of pixels"),
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
        honoured("inputs that a step before left on a GPU stay there", PYTHON, "no"),
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
            "cudnn_conv_algo_search": "how cuDNN's algorithms are chosen, on a GPU: 0 by running "
            "all, 1 by a rule, 2 always the same",
            "gpu_mem_limit": "the most memory that an instance takes on a GPU, in bytes",
            "arena_extend_strategy": "how much memory an instance takes on a GPU when it needs "
            "more: 0 the next power of two, 1 what it needs",
        }.items()
    },
    "parameters.do_copy_in_default_stream": (ignored(PLACES, ONNX),),
    "parameters.session.use_device_allocator_for_initializers": (ignored(PLACES, ONNX),),
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
    "parameters.execution_context_allocation_strategy": (ignored(PLACES, TENSORRT),),
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
        )
    },
    "parameters.CPU_BIND_THREAD": (
        honoured("YES: threads keep to processors of their own", OPENVINO, "YES"),
        ignored("it says how work is spread over threads: answers are the same", OPENVINO),
    ),
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
