"""The languages of the mixture, and their families."""

from __future__ import annotations

# In the order in which smaller mixtures take them: the first few are as diverse as all.
LANGUAGES = {
    "de": ("German", "germanic"),
    "es": ("Spanish", "romance"),
    "pl": ("Polish", "slavic"),
    "fi": ("Finnish", "uralic"),
    "tr": ("Turkish", "turkic"),
    "id": ("Indonesian", "austronesian"),
    "ru": ("Russian", "slavic"),
    "sv": ("Swedish", "germanic"),
    "fr": ("French", "romance"),
    "hu": ("Hungarian", "uralic"),
    "lt": ("Lithuanian", "baltic"),
    "el": ("Greek", "hellenic"),
    "sw": ("Swahili", "bantu"),
    "hi": ("Hindi", "indo_aryan"),
    "nl": ("Dutch", "germanic"),
    "it": ("Italian", "romance"),
    "cs": ("Czech", "slavic"),
    "uk": ("Ukrainian", "slavic"),
    "da": ("Danish", "germanic"),
    "pt": ("Portuguese", "romance"),
    "sl": ("Slovenian", "slavic"),
    "is": ("Icelandic", "germanic"),
    "ro": ("Romanian", "romance"),
    "sk": ("Slovak", "slavic"),
}

# Training shows nothing of these, and each has a relative in `LANGUAGES`.
NEW_LANGUAGES = {
    "nb": ("Norwegian", "germanic"),
    "ca": ("Catalan", "romance"),
    "hr": ("Croatian", "slavic"),
    "lv": ("Latvian", "baltic"),
}

NAME = {code: name for code, (name, _) in (LANGUAGES | NEW_LANGUAGES).items()}
FAMILY = {code: family for code, (_, family) in (LANGUAGES | NEW_LANGUAGES).items()}

# Babel's Portuguese is that of Brazil; other packages are told so.
VARIANT = {"pt": "pt_BR"}
