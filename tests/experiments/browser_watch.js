// Runs before everything else in a page under test: remembers whatever goes wrong.
"use strict";
window.problems = [];
for (const kind of ["error", "unhandledrejection", "securitypolicyviolation"])
  addEventListener(kind, (event) => problems.push(kind + ": " + (event.message || event.reason || event.blockedURI || event.target)), true);
for (const level of ["error", "warn"]) console[level] = (...words) => problems.push(level + ": " + words.join(" "));
