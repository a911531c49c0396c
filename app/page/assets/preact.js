// @ts-check
export * from "./vendor/htm/standalone.module.js";
