"""Model configs as a model sees them: `ModelConfig` for auto-completion, and look-ups by name."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeAlias

Config: TypeAlias = dict[str, Any]

_PROPERTIES = {
    "input": ("name", "data_type", "dims", "optional"),
    "output": ("name", "data_type", "dims"),
}


class ModelConfig:
    """The config that `auto_complete_config` completes and returns."""

    __slots__ = ("_model_config",)

    def __init__(self, model_config: str) -> None:
        """`model_config`: JSON."""
        self._model_config: Config = json.loads(model_config)

    def as_dict(self) -> Config:
        """Return the config as it is now."""
        return self._model_config

    @property
    def _name(self) -> str:
        return str(self._model_config.get("name", ""))

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set the largest batch. Raises ValueError if the config file has a larger one."""
        given = self._model_config.get("max_batch_size", 0)
        if given > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {given}, but in auto-complete-config "
                f"function for model '{self._name}' specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Turn dynamic batching on. Raises ValueError if the config has another scheduler."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._model_config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{other}', but "
                    f"auto-complete-config function for model '{self._name}' tries to set "
                    "scheduling_choice as 'dynamic_batching'"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def add_input(self, input: Config) -> None:  # noqa: A002  Triton's name
        """Add an input: `name`, `data_type`, `dims`, and `optional` if it may be left out.

        Raises ValueError for other properties, and for what contradicts the config.
        """
        self._add("input", input)

    def add_output(self, output: Config) -> None:
        """Add an output: `name`, `data_type` and `dims`. Raises ValueError as `add_input` does."""
        self._add("output", output)

    def _add(self, kind: Literal["input", "output"], tensor: Config) -> None:
        where = f"in auto-complete-config function for model '{self._name}'"
        allowed = _PROPERTIES[kind]
        called = f"{kind} '{tensor['name']}'" if "name" in tensor else kind
        if not set(tensor) <= set(allowed):
            listed = ", ".join(f"'{each}'" for each in allowed[:-1]) + f" and '{allowed[-1]}'"
            raise ValueError(f"{called} {where} contains property other than {listed}.")
        for needed in allowed[:3]:
            if needed not in tensor:
                raise ValueError(f"{called} {where} is missing '{needed}' property.")
        for known in self._model_config.setdefault(kind, []):
            if known["name"] == tensor["name"]:
                self._merge(kind, known, tensor)
                return
        self._model_config[kind].append(tensor)

    def _merge(self, kind: str, known: Config, tensor: Config) -> None:
        """Complete a tensor of the config file. Raises ValueError for a contradiction."""
        name, datatype = tensor["name"], known.get("data_type", "TYPE_INVALID")
        if datatype not in {"TYPE_INVALID", tensor["data_type"]}:
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {datatype} "
                f"for {kind} '{name}', model provides {tensor['data_type']}"
            )
        for key in ("dims", "optional"):
            given = known.get(key)
            differs = bool(given) if key == "dims" else key in known and key in tensor
            if differs and given != tensor[key]:
                raise ValueError(
                    f"model '{self._name}', tensor '{name}': the model expects {key} "
                    f"{tensor[key]} but the model configuration specifies {key} {given}"
                )
        known |= tensor

    def set_model_transaction_policy(self, transaction_policy_dict: Config) -> None:
        """Set `{"decoupled": True}` or False.

        Raises ValueError for other keys, and if the config file says otherwise.
        """
        if not set(transaction_policy_dict) <= {"decoupled"}:
            raise ValueError(
                "model transaction property in auto-complete-config function for model "
                f"'{self._name}' contains property other than 'decoupled'."
            )
        policy = self._model_config.setdefault("model_transaction_policy", {})
        wanted = transaction_policy_dict.get("decoupled", policy.get("decoupled"))
        if wanted is None:
            return
        if policy.setdefault("decoupled", wanted) != wanted:
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model "
                f"'{self._name}', which is already set to '{policy['decoupled']}'."
            )


def get_input_config_by_name(model_config: Config, name: str) -> Config | None:
    """Return the input of that name of a model config; None if it has none."""
    return _named(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Config, name: str) -> Config | None:
    """Return the output of that name of a model config; None if it has none."""
    return _named(model_config.get("output", ()), name)


def _named(tensors: Any, name: str) -> Config | None:
    return next((tensor for tensor in tensors if tensor["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Config) -> bool:
    """Return whether a model config says that the model is decoupled."""
    policy: Config = model_config.get("model_transaction_policy", {})
    return bool(policy.get("decoupled", False))
