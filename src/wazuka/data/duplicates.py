"""Images that are there twice: across the line between training and test they flatter the accuracy."""

from dataclasses import dataclass
from hashlib import blake2b

from wazuka.data.imageset import UNLABELED, Dataset, ImageSet


@dataclass(frozen=True)
class Duplicate:
    """A group of images whose pixels, once decoded and brought to the set's size, are all the same.

    names      at least two
    places     of each: "labeled", "unlabeled" (both in the training images) or "test"
    labels     of each: the class's name, or None
    """

    names: tuple[str, ...]
    places: tuple[str, ...]
    labels: tuple[str | None, ...]

    @property
    def leaks(self) -> bool:
        """Whether a test image is also a training image."""
        return "test" in self.places and len(set(self.places)) > 1

    @property
    def conflicts(self) -> bool:
        """Whether the same picture has two different labels."""
        return len(set(self.labels) - {None}) > 1


def find_duplicates(data: Dataset) -> list[Duplicate]:
    """All groups of identical images: contradicting labels first, then leaks into the test set, then the rest."""
    groups: dict[bytes, list[tuple[str, str, str | None]]] = {}
    for images, is_test in ((data.train, False), (data.test, True)):
        if images is not None:
            for digest, member in zip(_digests(images), _members(images, is_test), strict=True):
                groups.setdefault(digest, []).append(member)
    found = [Duplicate(*zip(*members, strict=True)) for members in groups.values() if len(members) > 1]
    return sorted(found, key=lambda group: (not group.conflicts, not group.leaks))


def describe_duplicates(found: list[Duplicate]) -> list[str]:
    """At most four sentences for a report: what was found, what it does, and an example."""
    sentences = []
    if conflicts := [group for group in found if group.conflicts]:
        example = ", ".join(
            f'{name} ("{label}")' for name, label in zip(conflicts[0].names, conflicts[0].labels, strict=True) if label
        )
        sentences.append(
            f"{_count(conflicts, 'picture has', 'pictures have')} more than one label, for example {example}: "
            "at least one of them is wrong."
        )
    if leaks := [group for group in found if group.leaks]:
        tests = sum(group.places.count("test") for group in leaks)
        sentences.append(
            f"{tests:,} test image{'s are' if tests > 1 else ' is'} also among the training images, for example "
            f"{_example(leaks[0])}: the accuracy may look better than it is."
        )
    across = [group for group in found if {"labeled", "unlabeled"} <= set(group.places)]
    if across:
        sentences.append(
            f"{_count(across, 'picture is', 'pictures are')} both labeled and unlabeled, for example "
            f"{_example(across[0])}: harmless, but its label is known."
        )
    within = [group for group in found if len(set(group.places)) == 1]
    if within:
        sentences.append(
            f"{_count(within, 'picture occurs', 'pictures occur')} more than once in one place, for example "
            f"{_example(within[0])}."
        )
    return sentences


def _digests(images: ImageSet) -> list[bytes]:
    return [blake2b(pixels.tobytes(), digest_size=16).digest() for pixels in images.images]


def _members(images: ImageSet, is_test: bool) -> list[tuple[str, str, str | None]]:
    members = []
    for name, label in zip(images.names, images.labels.tolist(), strict=True):
        place = "test" if is_test else "unlabeled" if label == UNLABELED else "labeled"
        members.append((name, place, None if label == UNLABELED else images.classes[label]))
    return members


def _count(groups: list[Duplicate], one: str, many: str) -> str:
    return f"{len(groups):,} {one if len(groups) == 1 else many}"


def _example(group: Duplicate) -> str:
    """Two names, from different places where there are such."""
    other = next((i for i, place in enumerate(group.places) if place != group.places[0]), 1)
    return f"{group.names[0]} = {group.names[other]}"
