"""The 48 classes of the pictures: emoji by their CLDR English short names, in coarse groups."""

# (character, CLDR short name in English) by coarse group.
EMOJI: dict[str, list[tuple[str, str]]] = {
    "face": [
        ("\U0001f600", "grinning face"),
        ("\U0001f60e", "smiling face with sunglasses"),
        ("\U0001f60d", "smiling face with heart-eyes"),
        ("\U0001f62d", "loudly crying face"),
        ("\U0001f621", "enraged face"),
        ("\U0001f637", "face with medical mask"),
        ("\U0001f922", "nauseated face"),
        ("\U0001f976", "cold face"),
    ],
    "fruit": [
        ("\U0001f34e", "red apple"),
        ("\U0001f34c", "banana"),
        ("\U0001f347", "grapes"),
        ("\U0001f353", "strawberry"),
        ("\U0001f349", "watermelon"),
        ("\U0001f34d", "pineapple"),
        ("\U0001f352", "cherries"),
        ("\U0001f350", "pear"),
        ("\U0001f34b", "lemon"),
        ("\U0001f34a", "tangerine"),
    ],
    "vehicle": [
        ("\U0001f697", "automobile"),
        ("\U0001f68c", "bus"),
        ("\U0001f6b2", "bicycle"),
        ("\U0001f680", "rocket"),
        ("\u2708", "airplane"),
        ("\u26f5", "sailboat"),
        ("\U0001f682", "locomotive"),
        ("\U0001f681", "helicopter"),
        ("\U0001f69c", "tractor"),
        ("\U0001f691", "ambulance"),
    ],
    "animal": [
        ("\U0001f436", "dog face"),
        ("\U0001f431", "cat face"),
        ("\U0001f43c", "panda"),
        ("\U0001f981", "lion"),
        ("\U0001f98a", "fox"),
        ("\U0001f438", "frog"),
        ("\U0001f427", "penguin"),
        ("\U0001f422", "turtle"),
        ("\U0001f98b", "butterfly"),
        ("\U0001f418", "elephant"),
        ("\U0001f419", "octopus"),
        ("\U0001f41f", "fish"),
    ],
    "object": [
        ("\u26bd", "soccer ball"),
        ("\U0001f3c0", "basketball"),
        ("\U0001f3b8", "guitar"),
        ("\U0001f4f7", "camera"),
        ("\u2602", "umbrella"),
        ("\u23f0", "alarm clock"),
        ("\U0001f511", "key"),
        ("\U0001f4a1", "light bulb"),
    ],
}

GROUPS: dict[str, list[str]] = {
    group: [name for _, name in members] for group, members in EMOJI.items()
}
CLASS_NAMES: list[str] = [name for names in GROUPS.values() for name in names]
