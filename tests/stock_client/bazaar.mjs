// Judges quotes' `bazaar` and `payment-identifier` extensions as catalogues and clients do, by the official package. A line
// of JSON in (a quote's extensions), a line of JSON out: {"errors": [...], "template", "id"}.

import { createInterface } from "node:readline";
import { isValidRouteTemplate, validateDiscoveryExtension, validateDiscoveryExtensionSpec } from "@x402/extensions/bazaar";
import { appendPaymentIdentifierToExtensions } from "@x402/extensions/payment-identifier";

for await (const line of createInterface({ input: process.stdin })) {
  const extensions = JSON.parse(line);
  const { bazaar } = extensions;
  const errors = [validateDiscoveryExtension, validateDiscoveryExtensionSpec].flatMap(validate => {
    const { valid, errors } = validate(bazaar);
    return valid ? [] : errors;
  });
  const { routeTemplate } = bazaar;
  if (routeTemplate !== undefined && !isValidRouteTemplate(routeTemplate)) errors.push(`template ${routeTemplate}`);
  const id = appendPaymentIdentifierToExtensions(extensions)["payment-identifier"]?.info?.id;
  process.stdout.write(`${JSON.stringify({ errors, template: routeTemplate, id })}\n`);
}
