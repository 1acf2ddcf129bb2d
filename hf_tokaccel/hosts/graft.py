"""Moving the parameters of one model into another of the same parameter names, without copying any tensor."""

import copy
import functools
import sys
from types import MethodType
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ..checks import UserError
from ..upstream import HOOKS_INSTALLED
from .change import CHANGED
from .tracked import native_block, retrack

# Instance attributes that stay with their module object; what else is bound to it is bound anew, see `_rebind`.
_OWN = {"_compiled_call_impl", CHANGED}
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


def pair_configs(old: PreTrainedConfig, new: PreTrainedConfig) -> list[tuple[PreTrainedConfig, PreTrainedConfig]]:
    """`old` and its sub-configs, each with its counterpart in `new`."""
    pairs = [(old, new)]
    for name in old.sub_configs:
        child, counterpart = getattr(old, name, None), getattr(new, name, None)
        if isinstance(child, PreTrainedConfig) and isinstance(counterpart, PreTrainedConfig):
            pairs += pair_configs(child, counterpart)
    return pairs


def transplant(
    template: nn.Module,
    source: nn.Module,
    configs: dict[int, PreTrainedConfig],
) -> nn.Module:
    """`template` with the parameters, buffers and children of `source`.

    The result and `source` share tensors but no module objects, so that settings of one (attention implementation,
    hooks, train or eval) leave the other alone. Children keep the class that `source` gives them (quantised, LoRA),
    except where the template puts a class of its own or has `change`d the module.

    Args:
        template: a module built on the meta device.
        source: a module with the same parameter names.
        configs: by the identity of a config of the source, the config that replaces it.

    Raises:
        ValueError: when a `forward` was set on a module, and would go on running that of the source.
    """
    done: dict[int, nn.Module] = {}
    result = _transplant(template, source, configs, done)
    for module in done.values():
        _rebind(module, done)
    return result


def _transplant(
    template: nn.Module, source: nn.Module, configs: dict[int, PreTrainedConfig], done: dict[int, nn.Module]
) -> nn.Module:
    """See `transplant`; `done` has by the identity of a module of the source what replaces it.

    Hosts may have a module in two places.
    """
    if id(source) in done:
        return done[id(source)]
    if _is_compiled(source):
        inner = _transplant(getattr(template, "_orig_mod", template), source._orig_mod, configs, done)
        done[id(source)] = source.dynamo_ctx(inner)
        return done[id(source)]
    _check_forward(template, source)
    if not _is_ours(template) and not _is_ours(source):
        module = _shallow_copy(source, configs)
        retrack(module, template)
    else:
        module = template
        module._parameters.update(source._parameters)
        module._buffers.update(source._buffers)
        module.training = source.training
        _copy_extra_attributes(module, source)
        if CHANGED in template.__dict__ or CHANGED in source.__dict__:
            # Transformers records outputs with hooks, and the host remembers that it has put them there.
            for name in _HOOKS:
                setattr(module, name, getattr(source, name).copy())
    # Only what the source has: a template may come with an optional part, such as a pooler, that the source lacks.
    parts = {}
    for name, child in source._modules.items():
        counterpart = template._modules.get(name)
        if child is not None:
            child = _transplant(child if counterpart is None else counterpart, child, configs, done)
        parts[name] = child
        # An optional part that the template was built without is an attribute there, and would hide the child.
        module.__dict__.pop(name, None)
    module._modules = parts
    for name, value in module.__dict__.items():
        # Some hosts loop over a plain list of their children, some over modules that are in no other place.
        if isinstance(value, list) and any(isinstance(item, nn.Module) for item in value):
            module.__dict__[name] = [_listed(item, module is template, configs, done) for item in value]
    done[id(source)] = module
    return module


def _listed(item: Any, own: bool, configs: dict[int, PreTrainedConfig], done: dict[int, nn.Module]) -> Any:
    """What replaces an item of a plain list; the template's own modules stay."""
    if own or not isinstance(item, nn.Module):
        return done.get(id(item), item)
    return _transplant(item, item, configs, done)


def _is_ours(module: nn.Module) -> bool:
    return _has_our_class(module) or CHANGED in module.__dict__


def _has_our_class(module: nn.Module) -> bool:
    # A tracked block is the host's: the source says of what class.
    classes = native_block(type(module)).__mro__
    return any(cls.__module__.partition(".")[0] == __package__.partition(".")[0] for cls in classes)


def _shallow_copy(source: nn.Module, configs: dict[int, PreTrainedConfig]) -> nn.Module:
    module = copy.copy(source)
    state: dict[str, Any] = module.__dict__
    for name, value in state.items():
        if isinstance(value, (dict, set)):
            state[name] = value.copy()
    if id(state.get("config")) in configs:
        state["config"] = configs[id(state["config"])]
    return module


def _copy_extra_attributes(module: nn.Module, source: nn.Module) -> None:
    """What was set on the source after it was built, such as whether its recording hooks are installed."""
    module.__dict__.pop(HOOKS_INSTALLED, None)
    for name, value in source.__dict__.items():
        if name not in module.__dict__ and name not in _OWN:
            module.__dict__[name] = value


def _is_compiled(module: nn.Module) -> bool:
    """Whether this is what `torch.compile` returns for a module."""
    dynamo = sys.modules.get("torch._dynamo")  # nothing is compiled where it is not there
    return dynamo is not None and isinstance(module, dynamo.OptimizedModule)


def _check_forward(template: nn.Module, source: nn.Module) -> None:
    """Raises ValueError where a `forward` of the source's object would hide that of the result, or run the source."""
    forward = source.__dict__.get("forward")
    if forward is None or "_hf_hook" in source.__dict__:  # those of Accelerate
        return
    movable = isinstance(forward, (MethodType, functools.partial))
    if not movable or any(_has_our_class(part) or _is_tracked(part) for part in (template, source)):
        raise UserError(
            f"{type(source).__name__} has a forward that was set on the object, and would be lost or go on running "
            "the model that was given: take it away with `del module.forward`, and compile or patch what accelerate "
            "returns."
        )


def _is_tracked(module: nn.Module) -> bool:
    return native_block(type(module)) is not type(module)


def _rebind(module: nn.Module, done: dict[int, nn.Module]) -> None:
    """Methods and hooks that were made for a module of the source are made for its counterpart, as `deepcopy` does."""
    if _is_compiled(module):
        return
    for name, value in module.__dict__.items():
        module.__dict__[name] = _rebound(value, done)
    for name in _HOOKS:
        hooks = module.__dict__[name]
        for key, hook in hooks.items():
            hooks[key] = _rebound(hook, done)


def _rebound(value: Any, done: dict[int, nn.Module]) -> Any:
    if isinstance(value, MethodType) and id(value.__self__) in done:
        old, new, function = value.__self__, done[id(value.__self__)], value.__func__
        if getattr(type(old), function.__name__, None) is function:  # the class's own
            function = getattr(type(new), function.__name__, function)
        return MethodType(function, new)
    if isinstance(value, functools.partial):
        args = [done.get(id(part), part) for part in value.args]
        keywords = {name: done.get(id(part), part) for name, part in value.keywords.items()}
        new = functools.partial(_rebound(value.func, done), *args, **keywords)
        new.__dict__.update({name: _rebound(part, done) for name, part in vars(value).items()})
        return new
    return value
