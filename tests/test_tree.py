"""Nodes and pathways are values: nothing is changed, what is shared is shared, what is dropped is gone."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vosnb.tree import Node, Pathway, settled

SEED = Pathway(0.0, (), ())


def test_two_nodes_are_equal_only_if_they_are_the_same_one() -> None:
    one, two = Node(3, 0.5, 1.0), Node(3, 0.5, 1.0)
    assert one == one and one != two and len({one, two, one}) == 2


def test_values_do_not_change() -> None:
    node = Node(0, 0.5, 1.0)
    for value, name in ((node, "iou"), (SEED, "score")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 1.0)


def test_a_child_leaves_its_parent_and_its_siblings_as_they_were() -> None:
    a, b, c = (Node(t, 0.9, 1.0) for t in (0, 1, 1))
    parent = SEED.to(a, 0.0, [a])
    left, right = parent.to(b, -0.1, [b]), parent.to(c, -0.2, [a, c])
    assert (parent.score, parent.memory, parent.open) == (0.0, (a,), (a,))
    assert (left.score, left.memory, left.open) == (-0.1, (b,), (a, b))
    assert (right.score, right.memory, right.open) == (-0.2, (a, c), (a, c))
    assert (right.reported(1).open, right.reported(1).memory, right.open) == ((c,), (a, c), (a, c))


def test_what_no_pathway_holds_is_freed_at_once() -> None:
    gc.disable()  # by reference counts alone: there are no cycles to collect
    try:
        a = Node(0, 0.9, 1.0)
        trunk = SEED.to(a, 0.0, [a])
        leaves = [trunk.to(Node(1, iou, 1.0), 0.0, [a]) for iou in (0.1, 0.2)]
        gone, kept = (weakref.ref(leaf.open[-1]) for leaf in leaves)
        del leaves[0]
        assert gone() is None and kept() is leaves[0].open[-1]
    finally:
        gc.enable()


@settings(deadline=None)
@given(steps=st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=4), max_size=12))
def test_settled_are_the_oldest_nodes_that_all_leaves_descend_from(steps: list[list[tuple[int, int]]]) -> None:
    """`steps` grows a tree: per frame its survivors, each the parent among the leaves and which child of it."""
    leaves = [SEED]
    for t, survivors in enumerate(steps):
        nodes: dict[tuple[int, int], Node] = {}
        born = [(p % len(leaves), child) for p, child in survivors]
        leaves = [leaves[p].to(nodes.setdefault((p, child), Node(t, 0.5, 1.0)), 0.0, ()) for p, child in born]
    count = settled(leaves)
    assert all(len({leaf.open[t] for leaf in leaves}) == 1 for t in range(count))
    assert count == len(steps) or len({leaf.open[count] for leaf in leaves}) > 1
    # what has settled may be reported: the rest is as open as before
    assert settled([leaf.reported(count) for leaf in leaves]) == 0


def test_a_lone_pathway_is_settled_to_its_end() -> None:
    leaf = SEED
    for t in range(5):
        node = Node(t, 0.5, 1.0)
        leaf = leaf.to(node, 0.0, [node])
    assert settled([leaf]) == settled([leaf, leaf]) == 5 and settled([SEED]) == 0


def test_the_tree_needs_the_standard_library_alone() -> None:
    script = "import sys, importlib.util as u; s = u.spec_from_file_location('tree', sys.argv[1]); m = u.module_from_spec(s); "
    script += (
        "sys.modules['tree'] = m; s.loader.exec_module(m); print(sorted(sys.modules.keys() & {'numpy', 'torch', 'vosnb'}))"
    )
    tree = sys.modules[Node.__module__].__file__
    assert subprocess.run([sys.executable, "-I", "-c", script, tree], capture_output=True, text=True).stdout == "[]\n"
