"""Ray helpers that several packages need: connect, map over blocks, unwrap errors, wait, load the user's code."""
