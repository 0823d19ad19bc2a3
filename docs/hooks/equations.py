"""Equations as MathML, which browsers draw without scripts."""

import re
import textwrap

import griffe
from latex2mathml.converter import convert

_BLOCK = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])")
_ROLE = re.compile(r":math:`([^`]+)`")
_DIRECTIVE = re.compile(r"^\.\. math::(.*(?:\n+[ \t]+.*)*)", re.MULTILINE)
# Both are commands that the converter does not know.
_PLAIN = ((r"\tfrac", r"\frac"), (r"\mathbb{E}", "E"))


def block(latex):
    for command, plain in _PLAIN:
        latex = latex.replace(command, plain)
    return f'\n<div class="equation">{convert(latex.strip(), display="block")}</div>\n'


def inline(latex):
    for command, plain in _PLAIN:
        latex = latex.replace(command, plain)
    return f"<span>{convert(latex.strip())}</span>"


def in_markdown(text):
    """Converts what stands between ``$`` or ``$$``."""
    text = _BLOCK.sub(lambda match: block(match[1]), text)
    return _INLINE.sub(lambda match: inline(match[1]), text)


def in_docstring(text):
    """Converts the role and the directive ``math``."""

    def directive(match):
        latex = textwrap.dedent(match[1]).strip()
        if r"\\" in latex:
            latex = r"\begin{align}" + latex + r"\end{align}"
        return block(latex)

    return _ROLE.sub(
        lambda match: inline(match[1].replace("\n", " ")), _DIRECTIVE.sub(directive, text)
    )


class Equations(griffe.Extension):
    """Converts the equations of docstrings."""

    def on_object(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = in_docstring(obj.docstring.value)
