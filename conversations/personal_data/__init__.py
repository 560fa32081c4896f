"""Where personal data stands in a text: one module a sort, `recognise` for all of them together.

Light: the standard library, phonenumbers and python-stdnum; no model, no network. It knows nothing of placeholders.
"""
