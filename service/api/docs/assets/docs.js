"use strict";

const base = location.pathname.replace(/\/docs$/, ""); // a proxy may take it off

const ui = SwaggerUIBundle({
  url: `${base}/openapi.json`,
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "list",
  oauth2RedirectUrl: `${location.origin}${base}/docs/oauth2-redirect.html`,
  persistAuthorization: true,
  queryConfigEnabled: false, // a link must not make this page show, or send tokens to, another API
  tryItOutEnabled: true,
  validatorUrl: null, // else the document's address is sent to validator.swagger.io
});

// A public client that is part of the service: its one redirect is this page's.
ui.initOAuth({ clientId: "swagger-ui", usePkceWithAuthorizationCodeGrant: true });
