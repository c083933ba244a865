"""Everyday words, and questions made of them that have nothing to do with hearth."""

import random
import re
from functools import cache

from tools.demo_model.phrasing import data_lines, draw, parse

CHINESE = "中文"
# A kind of word in braces is replaced by a random word of that kind.
STRANGE = {
    "en": parse(
        "[who is the [{adjective} |]{noun} of {place}|what is the [{adjective} |]{noun} in {place}"
        "|how do I {verb} [a|my|the] [{adjective} |]{noun}|where [can I|do people] {verb} a {noun}"
        "|tell me [a story |something |]about [the|a|my] [{adjective} |]{noun}"
        "|why [is|was] the {noun} [so |]{adjective}|which {noun} is the most {adjective}"
        "|what is the most {adjective} {noun} in [the world|{place}]|who is {place} {noun}"
        "|write [me |][a poem|a song|a story|a letter|an essay] about [{adjective} |]{noun}s"
        "|when did the {noun} {verb} the {noun}|how {adjective} is [the|a] {noun} in {place}"
        "|do you [like|have|want|know] [a|the|my] {adjective} {noun}|what should I {verb} [today|]"
        "|can you {verb} [a|the|my] {noun}|which {noun} {verb} yesterday|how to {verb} a {noun}]"
    ),
    "zh": parse(
        "[为什么{中文}会有{中文}|你喜欢{中文}吗|{中文}和{中文}哪个好|谁是最好的{中文}|怎么画{中文}"
        "|给我讲讲{中文}[的故事|]|哪里可以买{中文}|{中文}[多少钱|好吃吗|是什么颜色|有多大|在哪里]"
        "|写一[首|篇]关于{中文}的[诗|作文|歌]|推荐一[个|些]{中文}|谁发明了{中文}|{中文}怎么做"
        "|最[大|小|贵|美]的{中文}是[什么|哪个]|我想要一个{中文}|世界上有多少{中文}]"
    ),
}


@cache
def _words() -> dict[str, tuple[str, ...]]:
    table = {}
    for line in data_lines("words.txt"):
        kind, _, words = line.partition(": ")
        table[kind] = tuple(words.split())
    return table


def draw_word(kind: str, rng: random.Random) -> str:
    """A random word of the kind: noun, verb, adjective, place or CHINESE."""
    return rng.choice(_words()[kind])


def draw_strange_question(language: str, rng: random.Random) -> str:
    """A question about anything but hearth; it need not make sense."""
    text = draw(STRANGE[language], rng)
    return re.sub(r"\{(\w+)\}", lambda match: draw_word(match[1], rng), text)
