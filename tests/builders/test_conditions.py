"""The conditions under which rows were painted: who made which rows, and what is said where they differ."""

import pytest

from attn2mask.builders.conditions import last_bit_warning, rows_by_conditions, several_conditions

TWO = {"device": "cpu", "dtype": "float32", "threads": 2, "cpu_capability": "AVX2", "batch_size": 8}
ONE = {**TWO, "threads": 1}


def test_rows_of_equal_conditions_are_one_entry_and_neighbors_are_one_range():
    made = [(range(0, 4), TWO), (range(4, 8), TWO), (range(8, 12), ONE), (range(12, 14), TWO)]
    assert rows_by_conditions(made) == [
        {"rows": "0 to 7, 12 to 13", **TWO},
        {"rows": "8 to 11", **ONE},
    ]
    assert rows_by_conditions(made[1:2] + made[3:]) == [{"rows": "4 to 7, 12 to 13", **TWO}]
    assert rows_by_conditions([]) == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("device", "NVIDIA H100", "device NVIDIA H100 (now cpu)"),
        ("dtype", "float16", "number format float16 (now float32)"),
        ("threads", 4, "threads 4 (now 2)"),
        ("cpu_capability", "DEFAULT", "CPU kernels DEFAULT (now AVX2)"),
        ("batch_size", 3, "batch size 3 (now 8)"),
    ],
)
def test_every_condition_that_differs_is_named_with_its_rows(name, value, text):
    entries = rows_by_conditions([(range(0, 4), {**TWO, name: value}), (range(4, 8), TWO)])
    message = last_bit_warning("data", entries, TWO)
    assert message.startswith(f"data: rows 0 to 3 were made with {text}: ")
    assert "last bit" in message
    assert last_bit_warning("data", entries[1:], TWO) is None


def test_a_build_without_rows_is_compared_with_how_it_was_begun():
    assert "the build was begun with threads 1 (now 2)" in last_bit_warning("d", [{"rows": "", **ONE}], TWO)
    assert last_bit_warning("d", [], TWO) is None


def test_a_finished_build_names_the_rows_of_each():
    made = [(range(k, k + 1), (TWO, ONE)[k % 2]) for k in range(12)]
    message = several_conditions("data", rows_by_conditions(made))
    assert "rows 0 to 0, 2 to 2, 4 to 4, 6 to 6 and 2 more ranges with threads 2" in message
    assert "rows 1 to 1, 3 to 3, 5 to 5, 7 to 7 and 2 more ranges with threads 1" in message
    assert "batch size" not in message
    assert several_conditions("data", rows_by_conditions(made[::2])) is None
