"use strict";

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "list",
  oauth2RedirectUrl: `${location.origin}/docs/oauth2-redirect.html`,
  persistAuthorization: true,
  queryConfigEnabled: false, // a link must not make this page show, or send tokens to, another API
  tryItOutEnabled: true,
  validatorUrl: null, // else the document's address is sent to validator.swagger.io
});
