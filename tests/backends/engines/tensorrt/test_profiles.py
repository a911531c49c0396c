"""`min` and `max` as optimisation profiles."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.backends.engines.tensorrt.profiles import (
    Input,
    ProfileError,
    ShapeRange,
    describe,
    fitting,
    make_profiles,
)

IMAGE = Input("image", (-1, 3, 224, 224))
OPEN = Input("image", (-1, 3, -1, -1))
IDS = Input("ids", (-1, 10))
FIXED = Input("image", (4, 3, 8, 8))


def profiles(inputs: Any, low: Any = None, high: Any = None, sizes: Any = (1, 2, 4)) -> Any:
    return [
        {name: tuple(shapes) for name, shapes in profile.items()}
        for profile in make_profiles(inputs, low, high, sizes)
    ]


def test_a_batch_size_becomes_a_profile_for_each_bucket() -> None:
    rest = (3, 224, 224)
    assert profiles([IMAGE], high="4") == [
        {"image": ((1, *rest), (1, *rest), (1, *rest))},
        {"image": ((1, *rest), (2, *rest), (2, *rest))},
        {"image": ((1, *rest), (4, *rest), (4, *rest))},
    ]
    assert (
        profiles([IMAGE])
        == profiles([IMAGE], high="4")
        == profiles([IMAGE], "1x3x224x224", "4x3x224x224")
    )


def test_buckets_lie_between_min_and_max() -> None:
    assert [profile["image"][2][0] for profile in profiles([IMAGE], "2", "6", (1, 2, 4, 6))] == [
        2,
        4,
        6,
    ]
    assert all(profile["image"][0][0] == 2 for profile in profiles([IMAGE], "2", "6", (1, 2, 4, 6)))


def test_several_inputs_share_the_batch() -> None:
    (*_, last) = profiles([IMAGE, IDS], high="4")
    assert last == {
        "image": ((1, 3, 224, 224), (4, 3, 224, 224), (4, 3, 224, 224)),
        "ids": ((1, 10), (4, 10), (4, 10)),
    }
    assert profiles([IMAGE, IDS], "1x3x224x224,1x10", "4x3x224x224,4x10") == profiles(
        [IMAGE, IDS], high="4"
    )


def test_several_profiles_stay_as_they_are() -> None:
    made = profiles([OPEN], "1x3x32x32;1x3x65x65", "8x3x64x64;2x3x512x512")
    assert made == [
        {"image": ((1, 3, 32, 32), (8, 3, 64, 64), (8, 3, 64, 64))},
        {"image": ((1, 3, 65, 65), (2, 3, 512, 512), (2, 3, 512, 512))},
    ]
    assert [profile["image"][0][0] for profile in profiles([IMAGE], "1", "1;8")] == [1, 1]


def test_open_sizes_keep_their_range_in_every_bucket() -> None:
    made = profiles([OPEN], "1x3x32x32", "2x3x64x64", (1, 2))
    assert made == [
        {"image": ((1, 3, 32, 32), (1, 3, 64, 64), (1, 3, 64, 64))},
        {"image": ((1, 3, 32, 32), (2, 3, 64, 64), (2, 3, 64, 64))},
    ]
    assert profiles([OPEN], "1", "1x3x64x64", (1,))[0]["image"][0] == (1, 3, 64, 64)


def test_fixed_shapes_need_no_profiles() -> None:
    assert profiles([FIXED], high="8", sizes=(1, 2, 4, 8)) == []
    assert describe([]) == "fixed shapes"


@pytest.mark.parametrize(
    ("inputs", "low", "high", "key", "message"),
    [
        (
            [IMAGE],
            "8",
            "4",
            "min",
            r"input image \(Nx3x224x224\): min is 8x3x224x224 and max 4x3x224x224: expected min <= "
            r"max",
        ),
        (
            [OPEN],
            None,
            "4",
            "max",
            r"axis 2, 3 of input image \(Nx3xNxN\) is open too: give a shape",
        ),
        ([OPEN], "1x3x64x64", "2x3x32x64", "min", "expected min <= max in every axis"),
        (
            [IMAGE],
            None,
            "4x3x224",
            "max",
            r"max has the shape 4x3x224 for input image \(Nx3x224x224\)",
        ),
        ([IMAGE], None, "4x1x224x224", "max", "max has the shape 4x1x224x224"),
        ([IMAGE], "1x3x8x8", "4", "min", "min has the shape 1x3x8x8"),
        (
            [IMAGE, IDS],
            None,
            "4x3x224x224",
            "max",
            r"max has 1 shapes in a profile, but the model has 2 inputs: image .*, ids \(Nx10\)",
        ),
        (
            [IMAGE, IDS],
            None,
            "4x3x224x224,8x10",
            "max",
            "different batch sizes in one profile: 4 for image, 8 for ids",
        ),
        (
            [IMAGE, IDS],
            "2x3x224x224,1x10",
            "4",
            "min",
            "different batch sizes in one profile: 2 for image, 1 for ids",
        ),
        ([IMAGE], "1;2;3", "4;5", "min", "min has 3 profiles and max 2"),
        ([IMAGE], "0", "0", "max", "expected sizes of at least 1"),
        (
            [FIXED],
            None,
            "8x3x8x8",
            "max",
            r"for input image \(4x3x8x8\): expected the input's own sizes",
        ),
    ],
)
def test_errors_name_key_input_and_what_was_expected(
    inputs: Any, low: Any, high: Any, key: Any, message: str
) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        make_profiles(inputs, low, high, (1, 2, 4))
    assert caught.value.key == key


def test_a_batch_runs_in_the_smallest_profile_that_takes_it() -> None:
    made = make_profiles([IMAGE], None, "4", (1, 2, 4))
    assert [fitting(made, {"image": (rows, 3, 224, 224)}) for rows in (1, 2, 3, 4, 5)] == [
        [0, 1, 2],
        [1, 2],
        [2],
        [2],
        [],
    ]
    assert fitting(made, {"image": (1, 3, 224)}) == []


def test_profiles_are_described_in_words() -> None:
    assert describe(make_profiles([IDS], None, "2", (1, 2))) == "ids 1x10; ids 1x10 to 2x10"
    assert str(ShapeRange((1, 2), (1, 2), (1, 2))) == "1x2"


def test_the_batch_may_be_on_another_axis() -> None:
    state = Input("state", (2, -1, 10), axis=1)
    made = profiles([IDS, state], high="4", sizes=(1, 4))
    assert made == [
        {"ids": ((1, 10),) * 3, "state": ((2, 1, 10),) * 3},
        {
            "ids": ((1, 10), (4, 10), (4, 10)),
            "state": ((2, 1, 10), (2, 4, 10), (2, 4, 10)),
        },
    ]
    assert made == profiles([IDS, state], "1x10,2x1x10", "4x10,2x4x10", (1, 4))
    with pytest.raises(ProfileError, match="different batch sizes in one profile: 4 for ids, 3"):
        make_profiles([IDS, state], None, "4x10,2x3x10", (1,))


def test_an_input_of_a_fixed_shape_is_in_no_profile() -> None:
    fixed = Input("anchors", (10, 4))
    assert [list(profile) for profile in profiles([IMAGE, fixed], high="4")] == [["image"]] * 3
    given = "1x3x224x224,10x4;4x3x224x224,10x4"
    assert [list(profile) for profile in profiles([IMAGE, fixed], given, given)] == [["image"]] * 2
