#!/usr/bin/env python3
"""Writes template_cases.json: small templates of our own and what jinja2 (set up as Hugging Face does) makes of them.

    python3 tests/text/template_cases.py > tests/text/template_cases.json

"text" is the output; "error": true means that jinja2 refuses the template or raises. The file names jinja2's version.
"""
import json

import jinja2

from template_parity import NOW, environment

V = {
    "n": 7,
    "f": 2.5,
    "s": 'Hello World',
    "e": '',
    "t": True,
    "none_": None,
    "zh": '你好,世界🙂',
    "l": [3, 1, 2],
    "words": ['b', 'A', 'c', 'a'],
    "d": {'b': 1, 'a': [1, 2], 'items': 'own', 'x y': None},
    "users": [{'name': 'Li', 'age': 30, 'in': {'city': 'X'}}, {'name': 'an', 'age': 25, 'in': {'city': 'Y'}},
              {'name': 'Li', 'age': 5, 'in': {}}],
    "html": '<a href=\'x\'>&"</a>',
    "multi": 'one\ntwo\n\nthree',
    "big": 9007199254740993,
    "tiny": 1e-07,
    "huge": 1.5e+300,
    "nested": [[1, [2]], {'k': [1, 2]}],
    "quote": "it's",
    "both": 'it\'s "q"',
    "ctl": 'a\tb\x01\u200b',
    "deep": {'a': {'b': [{'c': 5}]}},
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4 / 2
7 // 2
-7 // 2
7 % 3
-7 % 3
2 ** 10
2 ** -1
2 ** 3 ** 2
-2 ** 2
7.5 // 2
-7.5 % 2
1 / 3
10 / 5
1e16 + 0.0
123456789012345680.0
0.1 + 0.2
1e22
1.0
-0.0
1e-5
0.0001
3.14e2
tiny
huge
big
0x1F + 0b11 + 0o17
1_000_000
1_0.5
True + 1
not 0
none is none
true and 5
0 or 'x'
'' or []
1 if t else 2
(1 if not t)
n == 7.0
1 == True
'a' < 'b'
[1, 2] < [1, 3]
1 < 2 < 3
1 < 3 < 2
3 in l
9 not in l
'World' in s
'b' in d
(1, 2) == (1, 2)
[1] == (1,)
'a' ~ 1 ~ none ~ true ~ 1.5
'a' 'b' "c"
'ab' * 3
[0] * 3
[1] + [2]
(1,) + (2,)
'é' + zh
s[0]
s[-1]
s[1:4]
s[::-1]
s[::2]
s[-5:]
s[10:2:-2]
zh[0]
zh[-1]
zh[1:3]
zh[::-1]
l[0]
l[-1]
l[5]
l[::-1]
l[1:]
'abc'[5]
d.b
d['a']
d.nope
d['items']
d.a[1]
d['x y']
deep.a.b[0].c
deep['a'].b.0.c
users[0].name
users[1]['in'].city
d
l
(1,)
()
(1, 'a', none)
{'k': [1.0, 'x', true, none]}
nested
quote
[quote]
[both]
[ctl]
['\\\\', '\n']
{}
[]
[zh, '\u3000']
s.upper()
s.lower()
s.title()
s.swapcase()
'hELLO wORLD'.capitalize()
'ß'.upper()
'ÀÉ'.lower()
'  x '.strip()
'xxaxx'.strip('x')
'xxaxx'.lstrip('x')
'xxaxx'.rstrip('x')
'\u3000你\u3000'.strip()
'a,b,c'.split(',')
' a  b '.split()
'a,b,c'.split(',', 1)
'a,b,c'.rsplit(',', 1)
'a b c'.rsplit(none, 1)
''.split()
''.split(',')
'a  b'.split(' ')
multi.splitlines()
'a\r\nb\n'.splitlines(true)
' a b  c '.split(none, 1)
'x y z'.split(maxsplit=1)
s.startswith('He')
s.endswith(('x', 'ld'))
s.startswith('World', 6)
s.find('o')
s.rfind('o')
s.find('zz')
s.count('l')
s.index('W')
s.replace('l', 'L')
s.replace('l', 'L', 2)
'ab'.replace('', '-')
'-'.join(['a', 'b'])
','.join('abc')
'aaa'.count('aa')
zh.find('世')
'12'.isdigit()
'a1'.isalpha()
'a1'.isalnum()
' '.isspace()
''.isdigit()
'AB'.isupper()
'ab1'.islower()
'x'.center(5)
'x'.ljust(3) ~ '|'
'x'.rjust(3, '*')
'7'.zfill(3)
'-7'.zfill(4)
'pre-x'.removeprefix('pre-')
'a=b=c'.partition('=')
'a=b=c'.rpartition('=')
'{} {}'.format(1, 'a')
'{1} {0}'.format(1, 2)
'{a}-{b[0]}-{c.name}'.format(a=1, b=[2], c=users[0])
'{:>5}|{:<5}|{:^5}'.format(1, 'a', 'b')
'{:05.2f}'.format(3.14159)
'{:,}'.format(1234567)
'{:x} {:#b} {:+d}'.format(255, 5, 3)
'{!r}'.format('a')
'{{}}'.format()
'{:.2%}'.format(0.256)
'{:e}'.format(12345.678)
'{:*^9}'.format('mid')
'{:{w}}|'.format('a', w=4)
'%s and %d' % ('a', 5)
'%05.1f' % 3.14159
'%-5s|' % 'a'
'%x' % 255
'%(k)s' % {'k': 1}
'%%' % ()
'%5s' % 'ab'
'%r' % 'a'
'%+d' % 5
'%.3s' % 'abcdef'
'%e' % 1234.5
'%g' % 0.00001
'%c' % 'z'
'%s' % [1]
d.get('b')
d.get('z')
d.get('z', 5)
d.keys()
d.values()
d.items()
d.keys()|list
(d.items()|list)[0]
l.count(1)
l.index(2)
d.copy()
d|items|list
l|sort
l|sort(reverse=true)
words|sort
words|sort(case_sensitive=true)
users|sort(attribute='age')|map(attribute='age')|list
users|sort(attribute='name,age')|map(attribute='age')|join(',')
words|unique|list
[1, 1.0, true, 'a', 'A']|unique|list
l|min
l|max
words|max
[]|min
users|max(attribute='age')
l|sum
users|sum(attribute='age')
[[1], [2]]|sum(start=[])
l|first
l|last
[]|first
'abc'|first
l|reverse|list
'abc'|reverse
l|length
zh|length
d|length
l|list
zh|list
d|list
l|join
l|join('-')
users|join(', ', attribute='name')
[1, none, 'x']|join('/')
'abc'|upper
'hello world-foo (bar)'|title
'aBC dEF'|capitalize
'  x '|trim
'xxaxx'|trim('x')
none|trim
5|string|length
'a-b'|replace('-', '+')
'aaa'|replace('a', 'b', 2)
12|replace(1, 3)
'x'|center(5)
'%s-%s'|format(1, 2)
'%(a)s'|format(a=3)
multi|indent
multi|indent(2)
multi|indent(2, true)
multi|indent('> ', first=true, blank=true)
'a\n'|indent
'one two three'|wordcount
'a b&c/d?é'|urlencode
{'a': 'x y', 'b': 1}|urlencode
'one two three four'|truncate(9)
'one two three four'|truncate(9, true, '…', 0)
html|e
html|safe|e
html|escape|length
(html|safe) + '<'
'<' ~ (html|safe)
'<' + (html|safe)|upper
d|tojson
nested|tojson
zh|tojson
zh|tojson(ensure_ascii=true)
html|tojson
ctl|tojson
{'b': 1, 'a': {'c': []}}|tojson(indent=2)
[1, [2, {}]]|tojson(indent=4)
d|tojson(separators=(',', ':'))
{'b': 1, 'a': 2}|tojson(sort_keys=true)
[1.0, 1e16, 0.1, true, none, -5]|tojson
{1: 2, none: 3, true: 4}|tojson
(1, 2)|tojson
'a/b\\\\c\u2028'|tojson
[]|tojson(indent=2)
''|tojson
'42'|int
'4.9'|int
'x'|int
'x'|int(5)
none|int
3.9|int
-3.9|int
'ff'|int(base=16)
' 7 '|int
'1_0'|int
'2.5'|float
'x'|float
'x'|float(1.5)
3|float
-5|abs
-2.5|abs
2.5|round
3.5|round
42|round
2.675|round(2)
42.55|round(1, 'floor')
42.51|round(0, 'ceil')
1234.5|round(-2)
nope|default('x')
e|default('x')
e|default('x', true)
none_|d('y', boolean=true)
nope|d
d.zz|default([1])
nope is defined
s is defined
nope is undefined
none_ is none
t is boolean
t is true
1 is true
0 is false
n is number
t is number
t is integer
n is integer
f is float
s is string
d is mapping
l is sequence
s is sequence
d is sequence
d.items() is sequence
range(3) is sequence
nope is sequence
l is iterable
n is iterable
nope is iterable
n is odd
n is even
n is divisibleby 7
n is divisibleby(2)
n is eq 7
n is gt(6)
n is lt 3
n is ne 7
s is in ['x']
'a' is lower
'A' is upper
n is not none
range is callable
n is sameas n
(html|safe) is escaped
'upper' is filter
'odd' is test
l|map('string')|list
words|map('upper')|join
users|map(attribute='in.city')|list
users|map(attribute='in.city', default='-')|list
l|select('odd')|list
l|reject('odd')|list
[0, 1, '', 'a']|select|list
users|selectattr('name', 'equalto', 'Li')|list|length
users|rejectattr('age', 'gt', 20)|map(attribute='age')|list
users|selectattr('in.city')|list|length
l|map('float')|list
l|batch(2)|list
l|batch(2, 0)|list
d|dictsort(by='key')|first
{'b': 1, 'A': 0, 'c': -1}|dictsort
{'b': 1, 'A': 0}|dictsort(true)
{'b': 1, 'A': 0}|dictsort(false, 'value', true)
none|selectattr('x')|list
nope|list
nope|length
nope|upper
nope|join
range(5)|list
range(2, 8, 3)|list
range(5, 0, -2)|list
range(3)
range(5)[1:3]
range(3)[1]
dict(a=1, b=2)
dict({'x': 1}, y=2)
namespace(a=1).a
strftime_now('%Y-%m-%d %H:%M %B %a')
1, 2
(1)
[1, 2,]
{'a': 1,}
1 if 0
not nope
nope == none
nope ~ 'x'
[nope]
[[1, 2], [3]]|map('first')|list
'\u4f60\x41\101\n\q'
s is string and n is number
not s is string
s[0]|lower|upper
-n|abs
(-n)|abs
n is none or s is string
'a' if n > 5 else 'b' if n > 3 else 'c'
5 if true
"""

TEMPLATES = [
    "{% for x in l %}{{ x }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}|{{ loop.revindex }}{{ loop.revi"
    "ndex0 }}{{ loop.first }}{{ loop.index0 }} {% endfor %}",
    "{% for x in range(6) %}{% if x == 1 %}{% continue %}{% endif %}{% if x == 4 %}{% break %}{% end"
    "if %}{{ x }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{% endfor %}",
    "{% for c in zh %}{{ c }}.{% endfor %}",
    "{% for k in d %}{{ k }},{% endfor %}",
    "{% set x = 1 %}{% for y in l %}{% set x = x + y %}{{ x }} {% endfor %}{{ x }}",
    "{% set ns = namespace(x=0) %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }} {{ ns }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set x %}  a{{ n }}b{% endset %}[{{ x }}]",
    "{% set x | upper | trim %} abc {% endset %}[{{ x }}]",
    "{% if t %}{% set q = 1 %}{% endif %}{{ q }}",
    "{% macro f(a, b=2, c=none) %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ f(1) }} {{ f(1, c=3) }} {{"
    " f(1, 4, 5) }} {{ f() }}",
    "{% macro f() %}{{ caller() }}!{% endmacro %}{% call f() %}body{{ n }}{% endcall %}",
    "{% macro f(x) %}<{{ caller(x, x) }}>{% endmacro %}{% call(a, b) f(3) %}{{ a }}{{ b }}{% endcall %}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, a=3) }}",
    "{% macro fact(n) %}{% if n <= 1 %}1{% else %}{{ n * fact(n - 1)|int }}{% endif %}{% endmacro %}{{ fact(10) }}",
    "{% macro f() %}{{ later }}{% endmacro %}{% set later = 5 %}{{ f() }}",
    "{% set x = 1 %}{% macro f() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ f() }}{{ x }}",
    "{% for i in l %}{% macro g() %}{{ i }}{% endmacro %}{{ g() }}{% endfor %}",
    "{% macro f(x=[1, 2]) %}{{ x|join }}{% endmacro %}{{ f() }}{{ f([3]) }}",
    "{% macro f(*a) %}{% endmacro %}",
    "{{ f }}{% macro f() %}{% endmacro %}{{ f }}",
    "{% filter upper %}abc {{ s }}{% endfilter %}",
    "{% with a = 1, b = n %}{{ a + b }}{% endwith %}{{ a }}",
    "{% generation %}{% set q = 5 %}{{ q }}{% endgeneration %}{{ q }}",
    "a\n{% if t %}\nb\n{% endif %}\nc\n",
    "  {% if t %}\n  b\n  {% endif %}\n",
    "x {%- if t %} y {%- endif -%} z",
    "{{- n -}} \n x",
    " {{ n }} \n",
    "a {{- n }} b",
    "a\n   {#- c -#}\n  b",
    "a {# c #}\nb",
    "  {# c #}  \nb",
    "  {%+ if t %}x{% endif +%}\ny",
    "{% raw %}{{ x }}{% if %}{% endraw %}",
    "a {%- raw -%}  {{ x }}  {%- endraw -%} b",
    "{% raw %}\nx\n  {% endraw %}\ny",
    "a\r\nb\rc\n\n",
    "\n",
    "",
    "{{ '}}' }}{{ \"{%\" }}",
    "{{ {'a': {'b': 1}}['a']['b'] }}",
    "{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}{% if 0 %}a{% elif 2 %}b{% else %}c{% endif %}{% "
    "if 0 %}a{% elif 0 %}b{% else %}c{% endif %}",
    "{% for x in [1, 2] %}{% for y in 'ab' %}{{ x }}{{ y }}{{ loop.index }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x, y in [(1, 2), [3, 4]] %}{{ x }}{{ y }};{% endfor %}",
    "{% for g, items in users|groupby('name') %}{{ g }}:{{ items|length }} {% endfor %}",
    "{% set ns = namespace(a=1) %}{% set ns.b = 2 %}{{ ns.a }}{{ ns.b }}{{ ns.c }}",
    "{% print 1 + 1 %}",
    "{% for x in l %}{{ x }}{% set _ = 1 %}{% endfor %}{{ _ }}",
    "{% set x = [1] %}{% for i in range(3) %}{% set x = x + [i] %}{% endfor %}{{ x }}",
    "{% if nope.x is defined %}{% endif %}",
    "{{ nope.x }}",
    "{{ nope() }}",
    "{{ nope + 1 }}",
    "{{ 1 + 'a' }}",
    "{{ 'a' + 1 }}",
    "{{ none + 1 }}",
    "{{ none|length }}",
    "{{ 5|length }}",
    "{{ 1 / 0 }}",
    "{{ 1 // 0 }}",
    "{{ 1 % 0 }}",
    "{{ l.append(1) }}",
    "{{ d.pop('a') }}",
    "{{ d.update({}) }}",
    "{{ s.__class__ }}",
    "{{ s.__class__() }}",
    "{{ l.__len__() }}",
    "{{ raise_exception('no') }}",
    "{% for x in none %}{% endfor %}",
    "{% for x in 5 %}{% endfor %}",
    "{% set d.x = 1 %}",
    "{{ s.nope() }}",
    "{{ s() }}",
    "{{ 'a' < 1 }}",
    "{{ 1 in 5 }}",
    "{{ 1 in 'a' }}",
    "{{ l|nofilter }}",
    "{% if false %}{{ l|nofilter }}{% endif %}ok",
    "{% if false %}{{ l is notest }}{% endif %}ok",
    "{{ 1 if true else l|nofilter }}",
    "{{ l is notest }}",
    "{% macro f() %}{{ l|nofilter }}{% endmacro %}",
    "{{ [1, 2",
    "{{ 1 + }}",
    "{% if %}{% endif %}",
    "{% if 1 %}",
    "{% endif %}",
    "{% for x %}{% endfor %}",
    "{{ 'abc }}",
    "{# x",
    "{% raw %}x",
    "{% nope %}",
    "{{ }}",
    "{{ 1 2 }}",
    "{% break %}",
    "{% set true = 1 %}",
    "{{ range(1000001)|list }}",
    "{{ {[1]: 2} }}",
    "{% set a, b = 1 %}",
    "{% set a, b = [1] %}",
    "{{ d|tojson|nope }}",
    "{{ nope|tojson }}",
    "{{ l|map('nope')|list }}",
    "{{ 'x'.join(l) }}",
    "{{ 'a'.split('') }}",
    "{{ s.index('zz') }}",
    "{{ '{}'.format() }}",
    "{{ '%d' % 'x' }}",
    "{{ '%s %s' % 'x' }}",
    "{{ '%s' % (1, 2) }}",
    "{{ s[1.5] }}",
    "{{ l[::0] }}",
    "{{ undefined_fn(1) }}",
    "{{ l|sort(attribute='x') }}",
    "{{ [1, 'a']|sort }}",
    "{{ l|first|first }}",
    "{{ l|map('string')|length }}",
    "{{ (l|map('string'))[0] }}",
    "{% set g = l|map('string') %}{{ g|list }}{{ g|list }}",
    "{{ d|items|length }}",
    "{{ n|items|list }}",
    "{{ 'a' is divisibleby 2 }}",
    "{{ nope is odd }}",
    "{{ n is n is n }}",
    "{{ f(1) }}{% macro f() %}{% endmacro %}",
    "{% macro f() %}{% endmacro %}{{ f(1) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(b=1) }}",
    "{% macro f(a) %}{% endmacro %}{{ f(1, a=1) }}",
    "{% call s() %}{% endcall %}",
    "{% macro f() %}x{% endmacro %}{% call f() %}{% endcall %}",
    "{{ f(**{'a': 1}) }}{% macro f(a) %}{{ a }}{% endmacro %}",
    "{% macro f(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ f(*[1, 2]) }}{{ f(**{'a': 1, 'b': 2}) }}",
    "{{ dict(1) }}",
    "{% include 'x' %}",
    "{% for a in l recursive_ %}{% endfor %}",
]


def main():
    cases = [("{{ " + e.strip() + " }}") for e in EXPRESSIONS.strip().split("\n")] + TEMPLATES
    out, env = [], environment()
    for source in cases:
        try:
            out.append({"template": source, "text": env.from_string(source).render(**V)})
        except Exception:
            out.append({"template": source, "error": True})
    head = json.dumps({"jinja2": jinja2.__version__, "time": NOW, "variables": V}, ensure_ascii=False)
    print(head[:-1] + ', "cases": [\n' + ",\n".join(json.dumps(c, ensure_ascii=False) for c in out) + "\n]}")


if __name__ == "__main__":
    main()
