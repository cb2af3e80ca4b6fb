//! Arguments, output, exit codes; the client of the JSON API.
