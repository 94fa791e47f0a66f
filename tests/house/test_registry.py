"""The registry is strict: it builds the requested component, and names a mistake before any work."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from memkit import registry
from memkit.registry import Config, build, exemptions, factory, hints, names, nearest, register, takes_options_of


class Pot:
    """A component with an option of each sort."""

    def __init__(
        self, *, size: int, shape: Literal["round", "square"] = "round", parts: list[str | dict] | None = None
    ) -> None:
        self.size, self.shape, self.parts = size, shape, parts


def cup(*, volume: float = 0.5, handle: bool = True) -> tuple[float, bool]:
    return volume, handle


@pytest.fixture(autouse=True)
def shelf() -> Iterator[None]:
    """A kind of component with two names."""
    with registry.scratch():
        register("ware", "pot")(Pot)
        register("ware", "cup")(cup)
        yield


def test_build_calls_the_factory_with_the_options() -> None:
    assert build("ware", "cup") == (0.5, True)
    assert build("ware", "cup", volume=2, handle=False) == (2, False)
    pot = build("ware", {"name": "pot", "size": 3}, shape="square")
    assert (pot.size, pot.shape) == (3, "square")
    assert factory("ware", "pot") is Pot
    assert names("ware") == ["cup", "pot"]


def test_a_component_that_is_already_built_is_returned() -> None:
    pot = Pot(size=1)
    assert build("ware", pot) is pot
    with pytest.raises(ValueError, match=r"already built.*\['size'\]"):
        build("ware", pot, size=2)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("pott", {}, r"unknown ware 'pott'\. Did you mean 'pot'\? Known: cup, pot\."),
        ("zzz", {}, r"unknown ware 'zzz'\. Known: cup, pot\."),
        ("pot", {"size": 1, "shap": "round"}, r"ware 'pot' has no option 'shap'\. Did you mean 'shape'\?"),
        ("pot", {}, r"ware 'pot' needs the option size\."),
        ("pot", {"size": "1"}, r"option 'size' = '1' does not fit: .*integer"),
        ("pot", {"size": True}, r"option 'size' = True does not fit"),
        ("pot", {"size": 1.0}, r"option 'size' = 1.0 does not fit"),
        ("pot", {"size": 1, "shape": "oval"}, r"option 'shape' = 'oval' does not fit: .*'round' or 'square'"),
        ("pot", {"size": 1, "parts": [1]}, r"option 'parts' = \[1\] does not fit"),
        ({"size": 1}, {}, r"needs a 'name'; got the keys \['size'\]"),
        ({"name": "pot", "size": 1}, {"size": 2}, r"got \['size'\] twice"),
    ],
)
def test_mistakes_are_named(spec: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("ware", spec, **options)


def test_nothing_is_built_when_an_option_is_wrong() -> None:
    built = []

    def plate(*, size: int = 1, colour: str = "white") -> None:
        built.append((size, colour))

    register("ware", "plate")(plate)
    with pytest.raises(ValueError, match="colour"):
        build("ware", "plate", size=2, colour=3)
    Config("ware", "plate", {"size": 2}).check()
    assert built == []


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown kind 'wares'\. Did you mean 'ware'\?"):
        names("wares")
    with pytest.raises(ValueError, match=r"unknown kind 'tool'"):
        build("tool", "saw")


def test_a_name_is_taken_once() -> None:
    register("ware", "cup")(cup)  # the same factory, as when its module is loaded again
    with pytest.raises(ValueError, match=r"ware 'cup' is already registered by .*cup\. Choose another name"):
        register("ware", "cup")(Pot)
    register("glass", "cup")(Pot)  # another kind is another shelf
    assert factory("glass", "cup") is Pot
    assert factory("ware", "cup") is cup


def test_a_config_round_trips_through_yaml() -> None:
    config = Config("ware", "pot", {"size": 3, "shape": "square", "parts": ["lid", {"name": "grip", "n": 2}]})
    again = Config.from_yaml(config.to_yaml())
    assert again == config
    assert again.build().parts == ["lid", {"name": "grip", "n": 2}]
    assert config.to_yaml().splitlines()[:2] == ["kind: ware", "name: pot"]


def test_a_config_is_read_as_strictly_as_a_grid() -> None:
    assert Config.from_yaml("{kind: ware, name: cup, volume: 1e-3}").build() == (1e-3, True)
    with pytest.raises(ValueError, match=r"the config is not valid YAML: the key 'volume' is given twice \(line 4"):
        Config.from_yaml("kind: ware\nname: cup\nvolume: 1\nvolume: 2")
    text = Config("ware", "pot", {"size": 1, "parts": ["1e-3"]})
    assert Config.from_yaml(text.to_yaml()) == text


def test_yaml_holds_data_and_nothing_else() -> None:
    with pytest.raises(ValueError, match=r"ware 'pot' has an option that is not data"):
        Config("ware", "pot", {"size": Pot(size=1)}).to_yaml()
    for text in ("- ware", "name: pot", "kind: 3\nname: pot"):
        with pytest.raises(ValueError, match="YAML mapping with the keys 'kind' and 'name'"):
            Config.from_yaml(text)
    with pytest.raises(ValueError, match="needs a 'name'"):
        Config.from_yaml("kind: ware")


def test_components_are_found_through_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def load_good() -> None:
        loads.append("good")
        register("ware", "bowl")(lambda: "bowl")

    def load_broken() -> None:
        raise ImportError("no kiln")

    points = [
        SimpleNamespace(value="broken.home", load=load_broken),
        SimpleNamespace(value="good", load=load_good),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_discovered", False)
    with pytest.warns(UserWarning, match=r"components of 'broken\.home' are not available: .*no kiln"):
        assert names("ware") == ["bowl", "cup", "pot"]  # a broken home takes no other with it
    assert build("ware", "bowl") == "bowl"
    assert loads == ["good"]  # once


def test_a_known_name_needs_no_discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_discovered", False)
    monkeypatch.setattr(registry, "entry_points", lambda group: pytest.fail("looked up without need"))
    assert build("ware", "cup", volume=1.0) == (1.0, True)


def test_nearest_lists_what_there_is() -> None:
    assert nearest("alpha", []) == "There are none."
    assert nearest("alpha", ["beta", "alpah"]) == "Did you mean 'alpah'? Known: alpah, beta."


def test_an_unknown_name_is_told_by_another_process_too() -> None:
    with pytest.raises(registry.UnknownName) as raised:
        build("ware", "bxo")
    again = pickle.loads(pickle.dumps(raised.value))
    assert str(again) == str(raised.value) and again.kind == "ware"
    assert str(again).startswith("unknown ware 'bxo'.")


def test_scratch_takes_back_what_is_registered_inside() -> None:
    before = registry.kinds(), names("ware")
    with pytest.raises(ZeroDivisionError), registry.scratch():  # also where the inside fails
        register("ware", "jug", exempt={"a law": "a reason"})(cup)
        register("glass", "cup")(cup)
        assert (names("ware"), exemptions("ware", "jug")) == (["cup", "jug", "pot"], {"a law": "a reason"})
        1 / 0  # noqa: B018
    assert (registry.kinds(), names("ware"), exemptions("ware", "jug")) == (*before, {})


@takes_options_of(Pot, cup, but=("parts",))
def shelf_of(count: int, /, *, shape: Literal["round", "oval"] = "oval", **rest: Any) -> dict[str, Any]:
    return {"count": count, "shape": shape, **rest}


def test_a_factory_takes_the_options_of_those_that_it_calls() -> None:
    options = inspect.signature(shelf_of).parameters
    assert list(options) == ["count", "shape", "size", "volume", "handle"]
    assert (options["shape"].default, options["volume"].default) == ("oval", 0.5)
    assert hints(shelf_of)["shape"] == Literal["round", "oval"] and hints(shelf_of)["size"] is int
    assert shelf_of(2, size=3) == {"count": 2, "shape": "oval", "size": 3}  # it is still the same function


def test_a_class_takes_options_and_its_subclasses_have_their_own() -> None:
    @takes_options_of(Pot)
    class Urn(Pot):
        def __init__(self, *, lid: bool = True, **pot: Any) -> None:
            super().__init__(**pot)

    class Small(Urn):
        def __init__(self, *, lid: bool = False) -> None:
            super().__init__(lid=lid, size=1)

    register("ware", "urn")(Urn)
    register("ware", "small")(Small)
    assert list(inspect.signature(Urn).parameters) == ["lid", "size", "shape", "parts"]
    assert build("ware", "urn", size=2, shape="square").shape == "square"
    with pytest.raises(ValueError, match=r"ware 'urn' has no option 'shap'\. Did you mean 'shape'\? Known: lid, parts"):
        build("ware", "urn", size=2, shap="square")
    with pytest.raises(ValueError, match=r"option 'shape' = 'oval' does not fit: .*'round' or 'square'"):
        build("ware", "urn", size=2, shape="oval")
    with pytest.raises(ValueError, match=r"ware 'small' has no option 'size'\. .*Known: lid\."):
        build("ware", "small", size=2)


def test_options_need_somewhere_to_go() -> None:
    with pytest.raises(ValueError, match=r"cup has no `\*\*rest` to pass options on\. Declare one\."):
        takes_options_of(Pot)(cup)
    with pytest.raises(ValueError, match=r"Bare has no `\*\*rest`"):

        @takes_options_of(Pot)
        class Bare(Pot):
            pass
