"""The decoding loop: rows, runs and guidance.

A `Decoder` holds a cache of rows. Replies join with `add`, every `step` gives each of them its next word, they leave
when they end or are cancelled: that is continuous batching, and a batch of one is the same thing.

A step first reads the words that the model has not seen yet, rows with equally many of them in one forward pass: a
prompt, one chosen word, or a chosen word together with the run that the grammar forces after it. Then it chooses. Of a
long prompt a step reads one chunk, so that the other replies go on meanwhile.

Dimension key: S rows of one pass · L new words of each · D language-model width · V vocabulary · N words of an image
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from rebus.beams import Branch, Reply, Stream, children, is_settled
from rebus.errors import RebusError
from rebus.grammar import Allow, Grammar, Modality
from rebus.lm import InterleavedLM
from rebus.narrate import Event, Finished, Narrator, Span
from rebus.sampling import Sampling, decide, log_scores, pick, restrict
from rebus.sequence import Sequence

CHUNK = 512
"""Words of a prompt that one step reads at most."""


class Decoder:
    """Decodes replies side by side, in `rows` rows of at most `capacity` words each; prompts are read in pieces of at most
    `chunk` words."""

    def __init__(self, lm: InterleavedLM, grammar: Grammar, *, rows: int, capacity: int, chunk: int = CHUNK) -> None:
        self.lm, self.grammar, self.chunk = lm, grammar, chunk
        self.capacity = min(capacity, lm.llm.max_length)
        self.cache = lm.llm.row_cache(rows, self.capacity)
        self._free = list(range(rows))
        self._replies: list[Reply] = []

    @property
    def free_rows(self) -> int:
        """Rows that no reply holds."""
        return len(self._free)

    @property
    def idle(self) -> bool:
        """Is there no reply under way?"""
        return not self._replies

    @staticmethod
    def rows_for(sampling: Sampling) -> int:
        """How many rows a reply needs: one for each beam, and as many again for guidance."""
        return sampling.beams * (1 if sampling.guidance == 1.0 else 2)

    @torch.inference_mode()
    def add(
        self, prompt: Sequence, *, modality: Modality, sampling: Sampling, generator: torch.Generator | None = None
    ) -> Reply:
        """Let a reply to `prompt` join; nothing is computed before the next step.

        Raises RebusError when the rows do not suffice, the prompt leaves no room, or the grammar has none for an image.
        """
        wanted = self.rows_for(sampling)
        if wanted > len(self._free):
            raise RebusError(
                f"This reply needs {wanted} rows of the decoder, but {len(self._free)} are free. "
                "Let another reply finish first, or make a decoder with more rows."
            )
        room = self.capacity - len(prompt)
        if room < 1:
            raise RebusError(
                f"The document has {len(prompt)} words, but there is room for {self.capacity} with the reply. "
                "Shorten the document, for instance by dropping its first turns."
            )
        rows, guided = self._free[:wanted], sampling.guidance != 1.0
        prompt_LD = self.lm.embed_one(prompt)[0]
        branch = Branch(Stream(rows[0], prompt_LD), Stream(rows[sampling.beams]) if guided else None)
        budget, narrator = min(sampling.max_new_tokens, room), Narrator(self.grammar, sampling.stop)
        reply = Reply(prompt_LD, modality, sampling, generator, budget, [branch], narrator, rows)
        self._follow(reply, branch)  # may raise, so rows are taken only now
        self._free = self._free[wanted:]
        for row in rows:
            self.cache.truncate(row)
        self._replies.append(reply)
        return reply

    def cancel(self, reply: Reply) -> None:
        """Let a reply leave, its rows free at once. One that is over has left already."""
        if reply in self._replies:
            self._replies.remove(reply)
            self._free = sorted(self._free + reply.rows)

    @torch.inference_mode()
    def step(self) -> list[tuple[Reply, Event]]:
        """One more word for every reply whose prompt is read, with what the grammar forces after it; and what became
        certain by that."""
        self._close_gaps()
        self._read([branch for reply in self._replies for branch in reply.branches])
        events: list[tuple[Reply, Event]] = []
        for reply in list(self._replies):
            if reply.branches[0].main.prompt_LD is not None:
                continue  # a long prompt, of which more is read in the next step
            if reply.sampling.beams > 1:
                over = self._search(reply)
            else:
                over = self._choose(reply)
            said = self._tell(reply) if over or reply.sampling.beams == 1 else []
            if reply.narrator.stopped and reply.best.ending != "stop":
                reply.best.ending, over = "stop", True
            if over and (reply.narrator.stopped or reply.told == len(reply.ids)):
                said += [*reply.narrator.flush(), Finished(reply.best.ending or "length")]
                self.cancel(reply)
            events += [(reply, event) for event in said]
        return events

    # ------------------------------------------------------------------------------------------ reading

    def _close_gaps(self) -> None:
        """Move the last rows into free ones before them: rows that lie together are read without copying the cache."""
        owners = {row: reply for reply in self._replies for row in reply.rows}
        while self._free and owners and self._free[0] < (last := max(owners)):
            free, reply = self._free.pop(0), owners.pop(last)
            self.cache.copy(last, free)
            for branch in reply.branches:
                for stream in (branch.main, branch.guide):
                    if stream is not None and stream.row == last:
                        stream.row = free
            reply.rows[reply.rows.index(last)] = free
            owners[free] = reply
            self._free = sorted([*self._free, last])

    def _read(self, branches: list[Branch]) -> None:
        """Let the model read what is unread, equally many words together; of a long prompt its next chunk."""
        passes: dict[int, list[tuple[Stream, Tensor, Branch | None]]] = defaultdict(list)
        for branch in branches:
            for stream, owner in ((branch.main, branch), (branch.guide, None)):
                if stream is None:
                    continue
                if stream.prompt_LD is not None and len(stream.prompt_LD) > self.chunk:
                    piece_LD, stream.prompt_LD = stream.prompt_LD.split(
                        [self.chunk, len(stream.prompt_LD) - self.chunk]
                    )
                    self.lm.read(piece_LD[None], self.cache, [stream.row])
                elif stream.unread or stream.prompt_LD is not None:
                    x_LD = self._vectors(stream)
                    passes[len(x_LD)].append((stream, x_LD, owner))
        for together in passes.values():
            together.sort(key=lambda item: item[0].row)  # neighbouring rows are read without copying the cache
            x_SLD = torch.stack([x_LD for _, x_LD, _ in together])
            hidden_SLD = self.lm.read(x_SLD, self.cache, [stream.row for stream, _, _ in together])
            logits_SV = self.lm.llm.logits(hidden_SLD[:, -1])
            for index, (stream, x_LD, owner) in enumerate(together):
                if owner is not None:
                    first = len(x_LD) - len(stream.unread)
                    owner.hidden += [hidden_SLD[index, first + at] for at in owner.unread_image]
                    owner.unread_image = []
                stream.logits_V, stream.prompt_LD = logits_SV[index], None
                stream.read, stream.unread = stream.read + stream.unread, []
                self._choose_codes(stream, hidden_SLD[index, -1])

    def _choose_codes(self, stream: Stream, hidden_D: Tensor) -> None:
        """Of a model that says what an image is to be before it writes its codes: how likely each is to come next."""
        codes = self.lm.llm.codes
        if codes is None or codes.draws is None or not stream.read:
            return
        begins = stream.read[-1] == codes.begin
        if begins:
            stream.wanted = codes.wanted(hidden_D[None], sharper=codes.draws.config.sharper)[0]
        written = codes.summed.open_end(stream.read)
        if stream.wanted is None or not (written or begins):
            stream.wanted = None
            return
        assert stream.logits_V is not None
        first, own_V = codes.following(stream.wanted, hidden_D, written)
        stream.logits_V = stream.logits_V.clone()
        stream.logits_V[first : first + len(own_V)] = own_V.to(stream.logits_V.dtype)

    def _vectors(self, stream: Stream) -> Tensor:
        """L x D: the prompt, if it is unread, and the unread words."""
        words = [] if stream.prompt_LD is None else [stream.prompt_LD]
        if stream.unread:
            words.append(self.lm.llm.embed_after(stream.read, stream.unread))
        return torch.cat(words)

    # ------------------------------------------------------------------------------------------ choosing

    def _scores(self, reply: Reply, branch: Branch) -> Tensor:
        """What the model says of every word, -inf where the grammar or the settings forbid it, V."""
        sampling, logits_V = reply.sampling, branch.main.logits_V
        action = self.grammar.next(branch.ids, reply.modality, reply.budget - len(branch.ids))
        # what is forced was taken with the word before it, and whatever was taken has been read
        assert isinstance(action, Allow) and logits_V is not None
        mask_V, branch.first = action.mask_V, action.first
        if len(branch.ids) < sampling.min_new_tokens and mask_V.sum() > 1:
            mask_V = mask_V.clone()
            mask_V[self.grammar.special.eos] = False
        if branch.inside is not None:
            unguided_V = None if branch.guide is None else branch.guide.logits_V
            return restrict(log_scores(logits_V, unguided_V, sampling.guidance), mask_V)
        text_V = self.grammar.text.text_V
        counts = sampling.repetition_penalty != 1.0
        repeated = [word for word in set(branch.ids) if word < len(text_V) and text_V[word]] if counts else []
        return restrict(log_scores(logits_V), mask_V, repeated, sampling.repetition_penalty)

    def _choose(self, reply: Reply) -> bool:
        """The next word of a reply without beams. Is it over?"""
        branch = reply.branches[0]
        if branch.ending is None:
            scores_V = self._scores(reply, branch)
            settings, open_V = reply.sampling.within(image=branch.inside is not None), scores_V
            comes = False
            if branch.first is not None:
                comes, branch.still = decide(scores_V, branch.first, branch.still, settings[0], reply.generator)
                open_V = scores_V.clone()
                open_V[branch.first] = float("-inf")
            word = branch.first if comes and branch.first is not None else pick(open_V, *settings, reply.generator)
            self._take(branch, word, float(scores_V[word]))
            self._follow(reply, branch)
        return branch.ending is not None

    def _search(self, reply: Reply) -> bool:
        """The next words of a beam search. Is it over?"""
        sampling, live = reply.sampling, reply.branches
        if live[0].ending is None:
            grown: list[tuple[Branch, Branch]] = []
            for parent, word, score in children([(b.score, self._scores(reply, b)) for b in live], 2 * sampling.beams):
                child = live[parent].copy()
                self._take(child, word, score - child.score)
                self._follow(reply, child)
                if child.ending is not None:
                    reply.ended.append(child)
                else:
                    grown.append((live[parent], child))
                if len(grown) == sampling.beams:
                    break
            self._seat(reply, grown)
            reply.branches = [child for _, child in grown]
            if not is_settled(reply.ended, reply.branches, sampling, reply.budget):
                return False
        winner = reply.best
        reply.branches, reply.ended = [winner], []
        if self.lm.output_projector is not None:  # its images' hidden states, in one pass over the whole
            self.cache.truncate(winner.main.row)
            winner.main.prompt_LD, winner.main.read, winner.main.unread = reply.prompt_LD, [], winner.ids
            winner.hidden, winner.unread_image = [], self._image_words(winner.ids)
            while winner.main.prompt_LD is not None:
                self._read([winner])
        return True

    def _seat(self, reply: Reply, grown: list[tuple[Branch, Branch]]) -> None:
        """Give every child of a beam search rows of its own: the first of a parent keeps its rows, the others copy them
        into rows that nobody keeps. The row of a guidance stream stands `beams` after its branch's."""
        beams, stays = reply.sampling.beams, {id(parent): child for parent, child in reversed(grown)}
        kept = {child.main.row for child in stays.values()}
        spare = [slot for slot in range(beams) if reply.rows[slot] not in kept]
        for parent, child in grown:
            if stays[id(parent)] is child:
                continue
            slot = spare.pop()
            child.main.row = reply.rows[slot]
            self.cache.copy(parent.main.row, child.main.row)
            if parent.guide is not None and child.guide is not None:
                child.guide.row = reply.rows[beams + slot]
                self.cache.copy(parent.guide.row, child.guide.row)

    def _image_words(self, ids: list[int]) -> list[int]:
        """Places of the words between the marks of images."""
        places, inside = [], False
        for place, word in enumerate(ids):
            inside = inside and word != self.grammar.special.end_image
            places += [place] if inside else []
            inside = inside or word == self.grammar.special.begin_image
        return places

    def _take(self, branch: Branch, word: int, score: float = 0.0) -> None:
        """Write a word down: into the reply, and into what its streams have to read."""
        special = self.grammar.special
        branch.ids.append(word)
        branch.score += score
        if branch.inside is not None and word != special.end_image:
            branch.unread_image.append(len(branch.main.unread))
            branch.inside += 1
        branch.main.unread.append(word)
        if word == special.begin_image:
            branch.inside, branch.still = 0, 1.0
            if branch.guide is not None:  # the guidance stream starts anew with every image
                self.cache.truncate(branch.guide.row)
                branch.guide.read, branch.guide.unread = [], [*self.grammar.unconditional(), word]
        elif branch.inside is not None:
            if branch.guide is not None:
                branch.guide.unread.append(word)
            if word == special.end_image:
                branch.inside = None

    def _follow(self, reply: Reply, branch: Branch) -> None:
        """Take what the grammar forces next, and see whether the branch is over."""
        while branch.ending is None:
            left = reply.budget - len(branch.ids)
            if branch.ids and branch.ids[-1] == self.grammar.special.eos:
                branch.ending = "end"
            elif left <= 0:
                branch.ending = "length"
            else:
                action = self.grammar.next(branch.ids, reply.modality, left)
                if isinstance(action, Allow):
                    return
                for word in action.run:
                    self._take(branch, word)

    # ------------------------------------------------------------------------------------------ telling

    def _tell(self, reply: Reply) -> list[Event]:
        """What the words that the narrator has not got yet complete. An image waits until its hidden states are read."""
        events: list[Event] = []
        branch = reply.best
        projects = self.lm.output_projector is not None
        for word in branch.ids[reply.told :]:
            if projects and word == self.grammar.special.end_image and branch.unread_image:
                break
            reply.told += 1
            for event in reply.narrator.push(word):
                if projects and isinstance(event, Span) and event.ids[-1] == self.grammar.special.end_image:
                    count = len(event.ids) - 2
                    event = replace(event, hidden_ND=torch.stack(branch.hidden[:count]))
                    branch.hidden = branch.hidden[count:]
                events.append(event)
        return events
