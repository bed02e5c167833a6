"use strict";

const base = location.pathname.replace(/\/redoc$/, ""); // a proxy may take it off

Redoc.init(`${base}/openapi.json`, {}, document.getElementById("redoc"));
