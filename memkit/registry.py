"""The registry: components by name, configs as data, strict in both.

A component is a factory (a function or a class) registered in its own file:

    @register("rule", "mine")
    def mine(*, depth: int = 1) -> Rule: ...

`build("rule", "mine", depth=2)` calls it. Options are checked against the factory's signature before
anything is built: an unknown name or option is an error that names the nearest valid one.
"""

from __future__ import annotations

import difflib
import inspect
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, TypeVar

import pydantic
import yaml

from memkit.strict_yaml import dump_yaml, load_yaml

ENTRY_POINT_GROUP = "memkit.components"

Spec = str | dict[str, Any]
"""A component as an option of another: its name, or `{"name": ..., option: value, ...}`."""

Factory = TypeVar("Factory", bound=Callable[..., Any])

_factories: dict[str, dict[str, Callable[..., Any]]] = {}
_exemptions: dict[tuple[str, str], dict[str, str]] = {}
_discovered = False


class UnknownName(ValueError):
    """No component has this name, or its file has not been imported yet."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message, kind)  # both: unpickling an error calls its class with these
        self.kind = kind

    def __str__(self) -> str:
        return self.args[0]


def register(kind: str, name: str, *, exempt: Mapping[str, str] | None = None) -> Callable[[Factory], Factory]:
    """Decorate a factory so that `build(kind, name, **options)` calls it.

    exempt: law of `memkit.testing` -> reason for the component not to keep it (see `exemptions`).
    Raises `ValueError` if another factory already has the name.
    """

    def add(factory: Factory) -> Factory:
        known = _factories.setdefault(kind, {})
        held = known.get(name)
        if held is not None and (held.__module__, held.__qualname__) != (
            factory.__module__,
            factory.__qualname__,
        ):
            raise ValueError(
                f"{kind} {name!r} is already registered by {held.__module__}.{held.__qualname__}. Choose another name."
            )
        known[name] = factory
        _exemptions[kind, name] = dict(exempt or {})
        return factory

    return add


def takes_options_of(*inner: Callable[..., Any], but: Collection[str] = ()) -> Callable[[Factory], Factory]:
    """Decorate a factory that passes its `**rest` on to others, to declare their options as its own.

        @register("mixer", "mag")
        @takes_options_of(NeuralMemory)
        class MemoryAsGate(Mixer):
            def __init__(self, *, dim: int, window: int = 64, **memory: Any) -> None: ...

    Names, defaults and types come from the signatures of `inner`, so that each option is declared once. Of two
    with the same name the factory's own counts, then the first. but: options of `inner` to leave out.
    Raises `ValueError` for a factory without `**rest`.
    """

    def add(factory: Factory) -> Factory:
        made_by: Any = factory
        if inspect.isclass(made_by):  # not the class itself: its subclasses would inherit the signature
            made_by = vars(made_by).get("__init__")
        signature = inspect.signature(made_by) if made_by else inspect.Signature()
        parameters = {p.name: p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}
        if len(parameters) == len(signature.parameters):
            raise ValueError(f"{factory.__qualname__} has no `**rest` to pass options on. Declare one.")
        types = {name: hint for name, hint in made_by.__annotations__.items() if name in (*parameters, "return")}
        for each in inner:
            known = hints(each)
            for p in inspect.signature(each).parameters.values():
                if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in (*parameters, *but):
                    types[p.name] = known.get(p.name, Any)
                    parameters[p.name] = p.replace(kind=p.KEYWORD_ONLY, annotation=types[p.name])
        made_by.__signature__ = signature.replace(parameters=list(parameters.values()))
        made_by.__annotations__ = types
        return factory

    return add


def hints(made_by: Callable[..., Any]) -> dict[str, Any]:
    """Return the type of every option of a factory."""
    return typing.get_type_hints(made_by.__init__ if inspect.isclass(made_by) else made_by, include_extras=True)


@contextmanager
def scratch() -> Iterator[None]:
    """Undo at the end all registrations made inside, for tests and examples."""
    discover()
    factories, reasons = {kind: dict(known) for kind, known in _factories.items()}, dict(_exemptions)
    try:
        yield
    finally:
        _factories.clear()
        _factories.update(factories)
        _exemptions.clear()
        _exemptions.update(reasons)


def exemptions(kind: str, name: str) -> dict[str, str]:
    """Return the laws that a component declares not to keep, with reasons."""
    return dict(_exemptions.get((kind, name), {}))


def registered_by(module: str) -> list[tuple[str, str]]:
    """Return kind and name of all registrations of a module, in order."""
    return [
        (kind, name) for kind, known in _factories.items() for name, made in known.items() if made.__module__ == module
    ]


def forget(module: str) -> None:
    """Remove all registrations of a module, so that a changed file can be imported again."""
    for kind, name in registered_by(module):
        del _factories[kind][name]
        _exemptions.pop((kind, name), None)


def kinds() -> list[str]:
    """Return the sorted kinds of components."""
    discover()
    return sorted(_factories)


def names(kind: str) -> list[str]:
    """Return the sorted names of all components of a kind, including those of third parties.

    Raises `ValueError`, with the nearest kind, for an unknown one.
    """
    discover()
    if kind not in _factories:
        raise ValueError(f"unknown kind {kind!r}. {nearest(kind, _factories)}")
    return sorted(_factories[kind])


def factory(kind: str, name: str) -> Callable[..., Any]:
    """Return the factory registered under a name; raise `UnknownName`, with the nearest, if there is none."""
    if name not in _factories.get(kind, {}):
        known = names(kind)  # discovers, and complains about an unknown kind
        if name not in known:
            raise UnknownName(f"unknown {kind} {name!r}. {_elsewhere(kind, name)}{nearest(name, known)}", kind)
    return _factories[kind][name]


def build(kind: str, spec: Any, /, **options: Any) -> Any:
    """Build a component.

    spec: a name, or a mapping `{"name": ..., option: value, ...}`, or an object already built, which is returned.
    Raises `ValueError` for unknown names and options, missing required options and values of a wrong type, before
    anything is built.
    """
    if isinstance(spec, str):
        return Config(kind, spec, options).build()
    if isinstance(spec, Mapping):
        return Config.of(kind, spec, **options).build()
    if options:
        raise ValueError(
            f"this {kind} is already built, so the options {sorted(options)} cannot apply. "
            "Pass its name together with the options."
        )
    return spec


@dataclass(frozen=True)
class Config:
    """A component as data: a kind, a name and options. It round-trips through YAML and is never pickled."""

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, spec: str | Mapping[str, Any], **options: Any) -> Config:
        """Read a name or a mapping `{"name": ..., option: value, ...}`, with further options."""
        if isinstance(spec, str):
            return cls(kind, spec, options)
        if not isinstance(spec.get("name"), str):
            raise ValueError(f"a {kind} given as a mapping needs a 'name'; got the keys {sorted(map(str, spec))}.")
        inner = {str(key): value for key, value in spec.items() if key != "name"}
        twice = sorted(inner.keys() & options.keys())
        if twice:
            raise ValueError(f"{kind} {spec['name']!r} got {twice} twice: in its mapping and as options.")
        return cls(kind, spec["name"], {**inner, **options})

    def check(self) -> None:
        """Raise `ValueError` unless `build` would accept this name and these options."""
        _check_options(self.kind, self.name, factory(self.kind, self.name), self.options)

    def build(self) -> Any:
        """Check, then call the factory."""
        self.check()
        return factory(self.kind, self.name)(**self.options)

    def to_yaml(self) -> str:
        """Write the config as YAML; raise `ValueError` for options that are objects and not data."""
        try:
            return dump_yaml({"kind": self.kind, "name": self.name, **self.options})
        except yaml.representer.RepresenterError as error:
            raise ValueError(
                f"{self.kind} {self.name!r} has an option that is not data, so it cannot be written as YAML: "
                f"{error.args[-1]!r}. Give components by name and options."
            ) from error

    @classmethod
    def from_yaml(cls, text: str) -> Config:
        """Read the YAML of `to_yaml`; `ValueError` for other YAML, a key given twice, and text that is not YAML."""
        data = load_yaml(text, "the config")
        if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
            raise ValueError("a config is a YAML mapping with the keys 'kind' and 'name' and the component's options.")
        return cls.of(data.pop("kind"), data)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Suggest the nearest known name, or list them all: the last sentence of an error."""
    known = sorted(known)
    small = {one.lower(): one for one in known}
    close = [small[one] for one in difflib.get_close_matches(name.lower(), small, n=1)]
    listed = f"Known: {', '.join(known)}." if known else "There are none."
    return f"Did you mean {close[0]!r}? {listed}" if close else listed


def _elsewhere(kind: str, name: str) -> str:
    """Say that a name is of another kind, and how a mixer runs a rule; empty if it is of none."""
    others = [other for other in kinds() if name in _factories[other]]
    if kind == "mixer" and "rule" in others:
        return f"There is a rule {name!r}: write {{'name': 'neural_memory', 'rule': {name!r}}}. "
    return f"{name!r} is of the kind {' and of the kind '.join(others)}. " if others else ""


def _check_options(kind: str, name: str, made_by: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(made_by).parameters
    for option in options:
        if option not in parameters:
            raise ValueError(f"{kind} {name!r} has no option {option!r}. {nearest(option, parameters)}")
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise ValueError(f"{kind} {name!r} needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}.")
    types = hints(made_by)
    strict = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True)
    for option, value in options.items():
        try:
            pydantic.TypeAdapter(types.get(option, Any), config=strict).validate_python(value)
        except pydantic.ValidationError as error:
            reasons = "; ".join(sorted({item["msg"] for item in error.errors()}))
            raise ValueError(f"{kind} {name!r}: option {option!r} = {value!r} does not fit: {reasons}.") from None


def discover() -> None:
    """Import every module that installed distributions declare as a home of components, once."""
    global _discovered
    if _discovered:
        return
    _discovered = True  # first, so that a call of `names` during the import does not recurse
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:  # a broken third party must not take down all other components
            warnings.warn(f"components of {point.value!r} are not available: {error!r}", stacklevel=3)
