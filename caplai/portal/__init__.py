"""The citizen's pages (floor 3) around the sign-in: getting back in, and what is one's own account.

It may use signin/ (who is in, what a page looks like), knows no other door, and decides nothing: service/ does.
Invariant: every page is a form that works without JavaScript, and the app's API does the same by the same verbs.
"""
