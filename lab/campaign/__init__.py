"""Campaigns: many runs with random schedules, each from its seed; recorded schedules, run again and shrunk.

`generate` draws a schedule, `record` turns one into a file and back, `runs` makes many runs on several processes,
`shrink` finds the smallest part of a schedule that still fails.
"""
