"""support/history.py: the steps of a dream that can be taken back."""

UNDO = 64  # steps,
CONTEXTS = 4  # as far as they lie in the newest contexts, each of which keeps a KV cache
CACHE = "pending", "length", "newest"
WORLD = "recent", "left", "scene", "n_branches", "cache", "codes"  # what a step changes in a WorldModel


class History:
    """Marks in the past of a WorldModel and of the simulator beside it, or None, with notes of the caller."""

    def __init__(self, world, truth):
        self.world = world
        self.truth = truth
        self.marks = []

    def __len__(self):
        return len(self.marks)

    def remember(self, **notes):
        """Mark where all is. Steps after it leave the marks' memory alone."""
        world = self.world
        mark = {name: getattr(world, name) for name in WORLD}
        cache = {name: getattr(world.cache, name) for name in CACHE}
        state = self.truth.state() if self.truth else None
        self.marks.append((mark, cache, world.generator.get_state(), state, notes))
        del self.marks[:-UNDO]
        while len({id(mark["cache"]) for mark, *_ in self.marks}) > CONTEXTS:
            del self.marks[0]
        if not world.left:
            world.cache = None  # a new context takes new memory: marks keep the old one

    def back(self):
        """To the newest mark: the same frame, and the same random numbers ahead -> its notes."""
        mark, cache, noise, state, notes = self.marks.pop()
        vars(self.world).update(mark)
        vars(self.world.cache).update(cache)
        self.world.generator.set_state(noise)
        if self.truth:
            self.truth.restore(state)
        return notes
