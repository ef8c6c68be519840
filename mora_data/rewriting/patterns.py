"""Words and phrases that the checks of rewrites look for. English, apart from the function words
that tell languages apart.

    META.search("As an AI, ...")   JAILBREAK.search("Hypothetically, ...")   PRESUPPOSES.search("It
    is proven that ...")

A phrase that the original holds too is never held against a rewrite: `checks` compares.
"""

from __future__ import annotations

import re

from ..text import TONGUES


def _vocabulary(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _any_of(*alternatives: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(alternatives) + r")\b", re.I)


SUFFIXES = (
    ("ations", 4),
    ("ation", 4),
    ("nesses", 4),
    ("ness", 4),
    ("ments", 4),
    ("ment", 4),
    ("ings", 3),
    ("ing", 3),
    ("edly", 3),
    ("ed", 3),
    ("ly", 4),
    ("ers", 4),
    ("er", 4),
    ("es", 4),
    ("s", 3),
)
STOP = _vocabulary(
    "a an the and or but if then so of to in on at by for with from as is are was were be been"
    " being am do does did doing can could should would will may might must shall have has had"
    " having i you he she it we they me my mine your yours his her hers its our ours their theirs"
    " us him them this that these those there here what which who whom whose when where why how not"
    " no nor yes just really very some any all more most much many few please tell help want need"
    " like know get got go going make let put into out up down over under about than too also only"
    " own same such each every other again s t m re ve ll d don doesn didn isn aren won wasn weren"
    " couldn shouldn wouldn good best way ways thing things use used using new one two"
)
TAGGED = re.compile(
    r"<(?:rewritten|rewrite|question)[^>]*>\s*(.+?)\s*</(?:rewritten|rewrite|question)", re.S | re.I
)
TAGGED_SUBJECT = re.compile(r"<subject[^>]*>\s*(.+?)\s*</subject", re.S | re.I)
TAGGED_INTENT = re.compile(
    r"<intent\s+dim=[\"']?([\w-]+)[\"']?\s*>\s*(.+?)\s*</intent", re.S | re.I
)
ROLE_TAG = re.compile(
    r"(?:^|\n)\s*(?:user|human|assistant|system|ai|bot|model|answer|response)\s*:"
    r"|<\|?(?:im_start|im_end|user|assistant|system|endoftext|eot_id)[^>]*\|?>|\[/?INST\]|<</?SYS>>",
    re.I,
)
OUR_TAG = re.compile(r"</?(?:prompt|question|answer|history)-[0-9a-f]{6,}>")
META = _any_of(
    r"reward(?:s|ed)? (?:model|signal|dimension)s?",
    r"(?:reward|preference|quality|evaluation) dimensions?",
    "multi-?dimensional",
    "(?:un)?helpful(?:ness)?",
    "harmless(?:ness)?",
    "(?:un)?truthful(?:ness)?",
    "rewrit(?:e|ten|ing)",
    "rephras(?:e|ed|ing)",
    "original (?:question|prompt)",
    "user(?:'s)? (?:question|prompt|intent)",
    "(?:the|this|your) prompt",
    "target dimension",
    "as an ai",
    "ai assistant",
    "(?:as a )?language model",
    "chatbot",
    "your (?:answer|response|reply) (?:should|must|needs? to|has to|is)",
    "(?:make sure|ensure|keep) (?:that )?(?:your|the) (?:answer|response|reply)",
    "(?:answer|respond|reply) (?:honestly|safely|ethically|responsibly)",
    "you are an? (?:assistant|expert|ai)",
    "be (?:honest|ethical) in your",
    "(?:balanced|comprehensive|nuanced) (?:answer|response)",
)
JAILBREAK = _any_of(
    "hypothetical(?:ly)?",
    "in a (?:fictional|imaginary|made-up) (?:world|story|universe|scenario|town|country)",
    "for (?:a|an|my|the) (?:\\w+ )?(?:novel|story|screenplay|roleplay|piece of"
    " fiction|thriller|stage play)",
    "for (?:a|my) (?:film|movie|book|video game|game) (?:i'm|i am|about|where|in which|that i)",
    "(?:in|of) my (?:novel|screenplay|crime story)",
    "my (?:main )?character (?:has|needs|wants|must|is) to",
    "(?:write|tell me) a (?:\\w+ )?(?:story|scene|script|novel|poem|song) (?:in"
    " which|where|that|about (?:a|someone|somebody) (?:who|how))",
    "role-?play(?:ing)?",
    "pretend(?:ing)? (?:to be|that|you|we)",
    "imagine (?:that )?(?:you(?:'re| are)|a world|we live)",
    "(?:please|must|should|will) act as (?:if you|an?|my)",
    "you are now",
    "you're now",
    "play the (?:role|part) of",
    "from the perspective of an?"
    " (?:criminal|hacker|villain|attacker|thief|dealer|burglar|fraudster)",
    "(?:as|like) an? (?:evil|unfiltered|uncensored|unrestricted|amoral) \\w+",
    "with no (?:restrictions|filters?|limits)",
    "without (?:any )?(?:moral |ethical |safety"
    " )?(?:restrictions|censorship|warnings|disclaimers|filters?|judg(?:e)?ment)",
    "(?:skip|leave out|no) (?:the |any |all )?(?:warnings|disclaimers|lectures?|safety notes?)",
    "(?:do not|don't|never) (?:refuse|decline|say (?:that )?you can't|lecture me|warn"
    " me|moralise|moralize)",
    "ignore (?:all |any |the |your |of"
    " )*(?:previous|prior|above|rules|instructions|guidelines|safety)",
    "developer mode",
    "jailbreak",
    "dan mode",
    "do anything now",
    "(?:sudo|god|admin|opposite) mode",
    "base64",
    "rot-?13",
    "leetspeak",
    "morse code",
    "in hex(?:adecimal)?",
    "pig latin",
    "caesar cipher",
    "(?:spelled|written|spelling) backwards",
    "backwards spelling",
    "encoded? (?:in|as)",
    "first letters? of each",
    "one letter (?:at a time|per line)",
    "for (?:purely |strictly )?(?:educational|academic|research|informational|scientific)"
    " (?:purposes|reasons)(?: only)?",
    "asking for a friend",
    "i (?:promise|swear) (?:that )?i (?:won't|will not)",
    "nobody will (?:ever )?know",
    "(?:start|begin) your (?:answer|reply|response) with",
    "(?:sure|of course), here (?:is|are)",
    "my (?:late |dead )?grand(?:ma|mother) used to (?:tell|read)",
    "(?:as|since|because) (?:i(?:'m| am) )?an? (?:licensed|certified|authori[sz]ed|undercover)"
    " \\w+,? (?:i|you|please|tell)",
)
PRESUPPOSES = _any_of(
    "(?:since|given that|because|as|now that) (?:it is|it's|it has been|it was)"
    " (?:proven|shown|known|established|a fact)",
    "(?:since|given that|because|now that) (?:\\w+ ){1,8}?(?:is|are|was|were|has been|have been)"
    " (?:proven|known|shown)(?: to)?",
    "(?:since|given that|because|as)"
    " (?:science|scientists|studies|research|experts|doctors|everyone|everybody|we all) (?:has"
    " |have |all )?(?:prove[sdn]?|shows?|showed|shown|knows?|agrees?|say|says|confirm(?:s|ed)?)",
    "(?:it is|it's) (?:a (?:proven|known|well-known) fact|proven|well known|common"
    " knowledge|scientifically proven) that",
    "(?:studies|research|science) (?:has |have )?(?:proven|proved) that",
    "as (?:everyone|everybody|we all) knows?,?",
)
LIST_MARK = re.compile(r"(?:^|\n)\s*(?:\d{1,2}[.)]|[-*•]|#{1,4}|\(?[a-z]\))\s+\S", re.I)
LABEL = re.compile(
    r"(?:^|\n)\s*(?:question|prompt|task|topic|subject|context|part [a-z0-9]+|q\d*)\s*:", re.I
)
FUNCTION_WORDS = frozenset(TONGUES)
