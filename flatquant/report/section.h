#pragma once

#include <nlohmann/json.hpp>
#include <string>

// What the page's sections are made with.
namespace flatquant {

// A heading and what it shows, both text.
std::string SectionHead(const std::string& title, const std::string& remark);

// A member of an object that a command wrote. Throw nlohmann::json::exception where it
// is missing or of another type. A number that JSON has as null is unknown: NaN.
double Number(const nlohmann::json& object, const char* member);
std::string Text(const nlohmann::json& object, const char* member);

// "27.0034", or "45.12 %" for what is a fraction; "-" where it is unknown.
std::string Value(double value, bool percent);

// Times are shown in whole units ("1:02:03", "4:05", "3.2s"); "-" where unknown.
std::string Duration(double seconds);

}  // namespace flatquant
