import itertools

import jinja2
import pytest

from shoal.runtime import template_sandbox
from shoal.runtime.text_errors import TemplateFailed


def compiled(source):
    environment = template_sandbox.make_environment()
    return template_sandbox.compile_template(environment, environment.parse(source))


def run(source, **variables):
    return template_sandbox.run_template(compiled(source), variables)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in [1, 2] recursive %}{{ i }}{{ loop.first }}{% if i is iterable %}{{ loop(i) }}{% endif %}{% endfor %}",
        "{% macro m(x) %}[{{ x }}{{ caller() if caller else '' }}]{% endmacro %}{{ m(1) }}{% call m(2) %}in{% endcall %}",
        "{% for i in [] %}{% else %}none{% endfor %}{% for a, b in {'x': 1}.items() %}{{ loop.length }}{{ a ~ b }}{% endfor %}",
        "{% set s %}{% for i in range(3) %}{{ loop.previtem }}{{ i }}{% endfor %}{% endset %}{{ s }}",
    ],
)
def test_the_watch_over_time_changes_no_text(source):
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    assert run(source) == plain.render()


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}",
        "{% set x %}{% for a in range(9) if a %}{{ a }}{% else %}{% endfor %}{% endset %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
)
def test_a_template_has_only_so_much_time(source):
    template = compiled(source)
    seconds = itertools.count()
    with pytest.raises(TemplateFailed, match="more than"):
        template_sandbox.run_template(template, {}, clock=lambda: next(seconds) * template_sandbox.MAX_RENDER_S / 3)


def test_the_text_has_only_so_much_length():
    piece = "a" * 1000
    most = template_sandbox.MAX_RENDERED_CHARS // 1000
    assert len(run("{% for i in range(n) %}{{ p }}{% endfor %}", n=most, p=piece)) == most * 1000
    with pytest.raises(TemplateFailed, match="longer than"):
        run("{% for i in range(n) %}{{ p }}{% endfor %}", n=most + 1, p=piece)


def test_an_error_does_not_quote_the_conversation():
    with pytest.raises(TemplateFailed) as caught:
        run("{{ [].index(text) }}", text="a secret")
    assert "secret" not in str(caught.value)
    with pytest.raises(TemplateFailed, match=r"can only concatenate str"):
        run("{{ 'a' + none }}")


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__ }}", "{{ f.__globals__ }}", "{{ {}.__init__ }}", "{{ cycler.__init__ }}"]
)
def test_python_behind_the_values_is_out_of_reach(source):
    assert run(source, f=run) == ""
    with pytest.raises(TemplateFailed):
        run(source.replace(" }}", ".x }}"), f=run)


@pytest.mark.parametrize(
    "source", ["{{ [].append(1) }}", "{{ {}.update(a=1) }}", "{{ {}.pop(1) }}", "{% include 'x' %}"]
)
def test_values_stay_as_they_are(source):
    with pytest.raises(TemplateFailed):
        run(source)
