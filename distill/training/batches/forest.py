"""All rows of a data set as one forest of tokens, in which every shared beginning stands once.

In: rows of token ids. Out: trees, cut out of the forest for one step: the rows of one conversation share their history, those
of several conversations their system prompt. Whoever computes a tree gets what its rows give one by one, because a row's
tokens see the same tokens at the same positions. Knows no text, no tensor and no model, and loses no row.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from distill.training.decisions.training_row import Belief, TrainingRow


@dataclass(frozen=True)
class Part:
    """A row of the forest, by its number, and how many tokens of its answer are learnt, from the first one on."""

    row: int
    scored: int


@dataclass(frozen=True)
class TokenTree:
    """Rows with shared prefixes stored once; every parent stands before its children.

    nodes: the number of each token in the forest. parents: index of the token before, -1 for the first. positions: depth in
    the tree. Scored entries say that the hidden state at `scored_at` predicts `scored_ids` with `scored_weights`, and what the
    teacher believed there (equal predictions of several rows, with equal beliefs, are added up).
    """

    row_count: int
    nodes: tuple[int, ...]
    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    positions: tuple[int, ...]
    scored_at: tuple[int, ...]
    scored_ids: tuple[int, ...]
    scored_weights: tuple[float, ...]
    scored_beliefs: tuple[Belief, ...]

    @property
    def scored_weight(self) -> float:
        """Return the weight of all its scored tokens together."""
        return sum(self.scored_weights)

    @property
    def subtree_ends(self) -> tuple[int, ...]:
        """Return, for each token, the index behind its last descendant: a token stands before all that descend from it."""
        ends = list(range(1, len(self.parents) + 1))
        for index in range(len(self.parents) - 1, -1, -1):
            parent = self.parents[index]
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[index])
        return tuple(ends)

    @property
    def is_chain(self) -> bool:
        """Return whether the tree has one branch only, so that the ordinary causal mask fits."""
        return all(parent == index - 1 for index, parent in enumerate(self.parents))


class Forest:
    """The rows of a data set, each prefix stored once. Rows keep their numbers; conversations are in the order of their names."""

    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        self.rows = tuple(rows)
        self._token_ids: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._ends = self._plant()
        by_conversation: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            by_conversation.setdefault(row.conversation_id, []).append(number)
        self.conversations: tuple[tuple[int, ...], ...] = tuple(
            tuple(sorted(numbers, key=lambda number: (len(self.rows[number].prompt_ids), self.rows[number].decision_id)))
            for _, numbers in sorted(by_conversation.items())
        )

    def __len__(self) -> int:
        """Return how many different tokens the model reads for all rows together."""
        return len(self._token_ids)

    def whole(self, row: int) -> Part:
        """Return a row with its whole answer, the end-of-turn token included."""
        return Part(row, len(self.rows[row].answer_ids))

    def trees(self, parts: Iterable[Part], *, max_tree_tokens: int, max_joined_tokens: int) -> Iterator[TokenTree]:
        """Yield the parts, in their order, as trees.

        A tree grows up to `max_tree_tokens` with rows of one conversation, and up to `max_joined_tokens` with rows of others.
        A single longer row still gets its tree.
        """
        taken: dict[int, None] = {}
        held: list[Part] = []
        for part in parts:
            new = self._nodes_of(part, taken)
            alone = all(self._conversation(each) == self._conversation(part) for each in held)
            if held and len(taken) + len(new) > (max_tree_tokens if alone else max_joined_tokens):
                yield self._tree(held, taken)
                taken, held = {}, []
                new = self._nodes_of(part, taken)
            taken.update(dict.fromkeys(new))
            held.append(part)
        if held:
            yield self._tree(held, taken)

    def _plant(self) -> list[int]:
        """Store every row and return the node of the last token that each reads.

        In the order of their tokens, a row shares with the one before it all that it shares with any earlier one.
        """
        ends = [-1] * len(self.rows)
        read = [row.prompt_ids + row.answer_ids[:-1] for row in self.rows]
        path: list[int] = []
        before: tuple[int, ...] = ()
        for number in sorted(range(len(read)), key=read.__getitem__):
            token_ids = read[number]
            shared = _shared(before, token_ids)
            del path[shared:]
            for depth in range(shared, len(token_ids)):
                self._token_ids.append(token_ids[depth])
                self._parents.append(path[-1] if path else -1)
                self._depths.append(depth)
                path.append(len(self._token_ids) - 1)
            ends[number], before = path[-1], token_ids
        return ends

    def _conversation(self, part: Part) -> str:
        return self.rows[part.row].conversation_id

    def _last_node(self, part: Part) -> int:
        """Return the node of the last token that is read for a part."""
        node = self._ends[part.row]
        for _ in range(len(self.rows[part.row].answer_ids) - part.scored):
            node = self._parents[node]
        return node

    def _nodes_of(self, part: Part, taken: dict[int, None]) -> list[int]:
        """Return the nodes of a part that are not among `taken`."""
        node, new = self._last_node(part), []
        while node >= 0 and node not in taken:
            new.append(node)
            node = self._parents[node]
        return new

    def _tree(self, parts: Sequence[Part], taken: Iterable[int]) -> TokenTree:
        # A parent was planted before its children, so that the order of nodes is one of trees.
        nodes = sorted(taken)
        place = {node: index for index, node in enumerate(nodes)}
        place[-1] = -1
        scored: dict[tuple[int, int, Belief], float] = {}
        for part in parts:
            row, node = self.rows[part.row], self._last_node(part)
            for at in reversed(range(part.scored)):
                key = (place[node], row.answer_ids[at], row.soft.at(at) if row.soft else ())
                scored[key] = scored.get(key, 0.0) + row.weight
                node = self._parents[node]
        return TokenTree(
            row_count=len(parts),
            nodes=tuple(nodes),
            token_ids=tuple(self._token_ids[node] for node in nodes),
            parents=tuple(place[self._parents[node]] for node in nodes),
            positions=tuple(self._depths[node] for node in nodes),
            scored_at=tuple(at for at, _, _ in scored),
            scored_ids=tuple(token_id for _, token_id, _ in scored),
            scored_weights=tuple(scored.values()),
            scored_beliefs=tuple(belief for _, _, belief in scored),
        )


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences share from their beginning."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count
