"""The treatment of the fields of batches, queues, sequences, ensembles and instances."""

from __future__ import annotations

from collections.abc import Mapping

from .treatments import (
    ON_CUDA,
    ONNX,
    OPENVINO,
    PLACES,
    PYTHON,
    READ_FOR_OTHERS,
    TENSORRT,
    TORCH,
    Line,
    approximated,
    honoured,
    ignored,
    refused,
)

_DELAY = (
    "a batch waits for more only while another one runs on its device, and starts at once if none "
    "does: answers are the same"
)
_RATES = (
    "Triton reads it only under --rate-limit=execution_count, where it says when instances run: "
    "answers are the same"
)
_ON_CPU = "models of this backend run on the CPU: answers differ by rounding alone"
_CONTROL = "the value that the model's input gets"

SCHEDULING_FIELDS: Mapping[str, tuple[Line, ...]] = {
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
    "sequence_batching": (honoured("requests belong to sequences"),),
    "sequence_batching.direct": (honoured("a sequence keeps its slot of a batch"),),
    "sequence_batching.direct.max_queue_delay_microseconds": (approximated(_DELAY),),
    "sequence_batching.direct.minimum_slot_utilization": (
        approximated(
            "a batch starts whatever share of the slots has a request, as with 0: answers are "
            "the same"
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
    "sequence_batching.state.use_same_buffer_for_input_output": (ignored(PLACES),),
    "sequence_batching.state.use_growable_memory": (ignored(PLACES),),
    "sequence_batching.iterative_sequence": (
        honoured("false: nothing to do", values="false"),
        approximated(
            "a request that is rescheduled runs again at once, before others have their turn: "
            "answers are the same",
            PYTHON,
        ),
        refused("only Python models can ask to be run again: remove it"),
    ),
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
    "instance_group": (honoured("instances of the model"),),
    "instance_group.name": (ignored("logs have it, and nothing else"),),
    "instance_group.kind": (
        approximated(ON_CUDA, ONNX, "KIND_GPU"),
        approximated(_ON_CPU, OPENVINO, "KIND_GPU"),
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
        approximated(ON_CUDA, ONNX),
        approximated(_ON_CPU, OPENVINO),
        honoured("the GPUs that instances run on"),
    ),
    "instance_group.secondary_devices": (
        ignored(READ_FOR_OTHERS, (ONNX, TORCH, PYTHON)),
        refused("DLA cores compute in another precision: remove secondary_devices"),
    ),
    **dict.fromkeys(
        ("instance_group.secondary_devices.kind", "instance_group.secondary_devices.device_id"),
        (
            ignored(READ_FOR_OTHERS, (ONNX, TORCH, PYTHON)),
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
}
