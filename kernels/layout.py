"""Where the rank rows of every site lie inside an adapter's block. Pure arithmetic on shapes.

An adapter of rank r stores, site by site, r rows A [r, D] and then r rows Bt [r, O] (B transposed),
for the sites it targets only. Rows are cut into *granules* of a fixed number of elements, the
greatest common divisor of the padded row widths, so that one index over granules can gather or
scatter rows of all widths at once. Offsets and sizes are counted in granules.
D input features, O output features, R rank.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd

NARROW_PADDING = 16  # elements; keeps vectors aligned
WIDE_PADDING = 128  # elements; a row of 4096 and more may lose 3 % for a larger granule
WIDE = 4096


@dataclass(frozen=True, eq=False)
class Layout:
    """The layout of adapters over the sites of one model.

    A *group* is the sites that read one input; its sites belong to one *family* (one bit), and an
    adapter's target mask says which families it has.
    """

    shapes: tuple[tuple[int, int], ...]  # (in_features, out_features) of every site
    groups: tuple[tuple[int, ...], ...]  # sites that read the same input, in site order
    families: tuple[int, ...]  # bit of each group
    granule: int = field(init=False)  # elements

    def __post_init__(self) -> None:
        granule = 0
        for shape in self.shapes:
            for width in shape:
                granule = gcd(granule, padded(width))
        object.__setattr__(self, "granule", granule)

    def row_granules(self, site: int) -> tuple[int, int]:
        """Granules of one A row and of one Bt row of a site."""
        in_features, out_features = self.shapes[site]
        return padded(in_features) // self.granule, padded(out_features) // self.granule

    def block_size(self, rank: int, targets: int) -> int:
        """Granules of a whole adapter."""
        return rank * self._unit_offsets(targets)[1]

    def site_offsets(self, rank: int, targets: int) -> dict[int, tuple[int, int]]:
        """Offsets of A and of Bt in the block, for each targeted site."""
        return {
            site: (rank * a_offset, rank * b_offset)
            for site, (a_offset, b_offset) in self._unit_offsets(targets)[0].items()
        }

    def target_groups(self, targets: int) -> list[int]:
        """Indices of the groups that a target mask covers."""
        return [index for index, family in enumerate(self.families) if targets & family]

    def portion_range(self, rank: int, targets: int, portion: int) -> tuple[int, int]:
        """First granule and number of granules of some families, which lie side by side."""
        before = self.block_size(rank, targets & (portion & -portion) - 1)
        return before, self.block_size(rank, targets & portion)

    @lru_cache(maxsize=64)  # noqa: B019  a layout lives as long as its process
    def _unit_offsets(self, targets: int) -> tuple[dict[int, tuple[int, int]], int]:
        offsets: dict[int, tuple[int, int]] = {}
        end = 0
        for group in self.target_groups(targets):
            for site in self.groups[group]:
                a_row, b_row = self.row_granules(site)
                offsets[site] = (end, end + a_row)
                end += a_row + b_row
        return offsets, end


def padded(width: int) -> int:
    """Elements a row of `width` takes."""
    step = WIDE_PADDING if width >= WIDE else NARROW_PADDING
    return -(-width // step) * step
